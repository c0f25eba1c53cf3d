"""Names and files of others: torch's weights, safetensors, diffusers folders, the hub,
tokenizers.
"""
