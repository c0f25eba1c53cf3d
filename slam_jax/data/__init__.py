"""Training data: sources of pictures with captions, what is made of them, batches in a fixed
order.
"""
