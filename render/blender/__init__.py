"""What runs inside Blender, in the child process alone: the only modules that import bpy."""
