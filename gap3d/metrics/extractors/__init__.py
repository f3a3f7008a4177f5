"""What turns pictures, texts and point clouds into the features that distances and scores compare."""
