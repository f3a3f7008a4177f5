"""The dataset's report: what its tokens look like, which images lie near each other, and what it is made of."""
