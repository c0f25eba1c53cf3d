"""Training data: sources, and the pipeline of batches drawn from them.

batches       the order of the examples, batches from any position on; workers: who reads them
examples      what sources of images with captions have in common; filters
rejects       what is passed over, counted by reason
digits, photographs                    bundled
tar_shards (shards, tar_index, tar_scan), image_folder, tfds_examples
              images with captions; metadata: the captions beside them
images        contents of image files -> RGB
image_text    an image with captions -> crop and token ids
prepared      latents that were encoded before; prepared_write, views: how they are made
"""
