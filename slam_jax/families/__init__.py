"""Kinds of models: what a model is without its weights, where its files are, how it is exported,
which prompts it takes.
"""
