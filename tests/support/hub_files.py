"""The files of repositories on the hub: of SDXL's, where one model is there in seven forms, and of
LoRAs."""

COMMIT, OLD_COMMIT = "c" * 40, "0" * 40

STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}


WANTED = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    *(f"{component}/config.json" for component in STEMS),
    *(
        f"{tokenizer}/{name}"
        for tokenizer in ("tokenizer", "tokenizer_2")
        for name in ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json")
    ),
}


PLAIN = {f"{component}/{stem}.safetensors" for component, stem in STEMS.items()}


FP16 = {f"{component}/{stem}.fp16.safetensors" for component, stem in STEMS.items()}


SHARDED = {
    "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
    "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
    "unet/diffusion_pytorch_model.safetensors.index.json",
}


SHARDED_FP16 = {
    "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
    "unet/diffusion_pytorch_model.fp16-00002-of-00002.safetensors",
    "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
}


OLDER_FP16 = {
    "unet/diffusion_pytorch_model-00001-of-00002.fp16.safetensors",
    "unet/diffusion_pytorch_model.safetensors.fp16.index.json",
}


OTHERS = {
    "README.md",
    "sd_xl_base_1.0.safetensors",
    "v1-5-pruned-emaonly.ckpt",
    "safety_checker/config.json",
    "safety_checker/model.safetensors",
    "text_encoder/pytorch_model.bin",
    "text_encoder/flax_model.msgpack",
    "text_encoder/model.onnx",
    "text_encoder/openvino_model.bin",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/diffusion_flax_model.msgpack",
    "vae_1_0/diffusion_pytorch_model.safetensors",
    "vae_decoder/model.onnx",
}


REPOSITORY = WANTED | PLAIN | FP16 | SHARDED | SHARDED_FP16 | OLDER_FP16 | OTHERS


# LoRAs: of diffusers, of a student, of peft; a lone file; several, in folders too; none.
ADAPTER = {"adapter_model.safetensors", "adapter_config.json"}


STUDENT = {"pytorch_lora_weights.safetensors", "slam.json", "scheduler/scheduler_config.json"}


SEVERAL = {"steps1.safetensors", "steps4.safetensors", "xl/steps4.safetensors", "xl/slam.json"}


LORAS = {
    "owner/student": STUDENT | {"README.md", "other.safetensors", "optimizer.bin"},
    "owner/peft": ADAPTER | {"README.md", "checkpoint-500/adapter_model.safetensors"},
    "owner/lone": {"style.safetensors", "style.png", "README.md"},
    "owner/several": SEVERAL,
    "owner/both": STUDENT | ADAPTER,
    "owner/many": {f"style{index:02}.safetensors" for index in range(11)},
    "owner/pickled": {"pytorch_lora_weights.bin"},
}


REPOSITORIES = {"owner/tiny": REPOSITORY, **LORAS}
