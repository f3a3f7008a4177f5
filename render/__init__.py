"""How a view becomes pixels: Blender in a child process, and the worker that owns it."""
