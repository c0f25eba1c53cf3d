"""Frozen networks whose features pictures are compared in, and how pictures are resized for
them.
"""
