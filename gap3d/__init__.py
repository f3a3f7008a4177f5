"""What is computed: pure logic without Blender, Ray or Dagster."""
