"""The exercises, a file for each lesson: lesson_06.py declares 06.1, 06.2, ..."""
