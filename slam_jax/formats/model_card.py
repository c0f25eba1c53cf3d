"""What the README.md and the record of an export tell their users."""

from dataclasses import dataclass

from slam_jax.formats import lora_file
from slam_jax.method.method import Method
from slam_jax.models.functional import Params
from slam_jax.models.lora import rank_of
from slam_jax.models.unet import UNetConfig

WHOLE_USAGE = (
    "StableDiffusionPipeline (SDXL: StableDiffusionXLPipeline).from_pretrained(folder)(prompt, "
    "num_inference_steps={steps}, guidance_scale=1). Guidance is built in; README.md says what "
    "another guidance_scale would do."
)
LORA_USAGE = (
    "load_lora_weights(folder) on the pipeline of the teacher, with the scheduler of this folder; "
    "then num_inference_steps={steps}, guidance_scale=1. Guidance is built in."
)
# What diffusers makes of another scale, with and without a gamma embedding in the UNet.
OTHER_SCALES = {
    True: "A `guidance_scale` of g would tell the network gamma = 1 - (g - 1) / 10, its place on\n"
    "a sub-path: 7.5 would mean gamma = 0.35, where no pictures are drawn. Negative prompts do\n"
    "nothing.",
    False: "Any other scale would guide a second time, at twice the cost.",
}
WHOLE = """# A student of {teacher}

Distilled by slam_jax with {method}; `slam.json` says
with which options. It draws in few steps:

```python
from diffusers import {pipeline}

pipeline = {pipeline}.from_pretrained("path/to/this/folder")
prompt = "a lighthouse by the sea at sunset"
image = pipeline(prompt, num_inference_steps={steps}, guidance_scale=1).images[0]
image.save("lighthouse.png")
```

Keep `guidance_scale=1`: the student has its guidance (w = {w:g}) built in.
{other_scales}

`slam-jax sample --model path/to/this/folder --prompt "..." --steps {steps} --out picture.png`
draws with JAX, and `slam_jax.load("path/to/this/folder")` reads it in Python.

Everything but the UNet and the scheduler's configuration is a copy of the teacher's. The teacher's
licence holds for this model too.
"""
AS_LORA = """`{file}` is {what}, of rank {rank}. It makes
{teacher} draw in few steps, and with luck its fine-tunes too.

```python
from diffusers import {pipeline}, {scheduler}

pipeline = {pipeline}.from_pretrained("{teacher}")
pipeline.load_lora_weights("path/to/this/folder")
pipeline.scheduler = {scheduler}.from_pretrained("path/to/this/folder", subfolder="scheduler")
image = pipeline("a lighthouse by the sea", num_inference_steps={steps}, guidance_scale=1).images[0]
```

{comfyui}.
"""
LORA_ALONE = """# A LoRA that makes {teacher} draw in few steps

Distilled by slam_jax with {method}, at
{size} pixels; `slam.json` says with which options.

{as_lora}
Keep `guidance_scale=1`: the LoRA has its guidance (w = {w:g}) built in.
{other_scales}

`slam-jax sample --model path/to/this/folder --prompt "..." --steps {steps} --out picture.png`
draws with JAX where {teacher} is still to be found;
`--model BASE --lora path/to/this/folder` draws with another base.

The teacher's licence holds for this LoRA too.
"""
# How ComfyUI draws as a scheduler of diffusers does.
COMFYUI = "ComfyUI loads the file as any LoRA, at strength 1"
SAMPLERS = {
    "LCMScheduler": "; draw with sampler `lcm` and CFG 1",
    "TCDScheduler": ", but has no sampler that draws as TCDScheduler does without noise",
}


@dataclass(frozen=True)
class Card:
    """Model cards of a student: how to draw with it, and why without guidance.

    Attributes:
      teacher: its name.
      pipeline: a class of diffusers.
      method: how the student was distilled.
      keys: the layout of its LoRA, one of `lora_file.KEYS`.
    """

    teacher: str
    pipeline: str
    method: Method
    keys: str = "kohya"

    def whole(self, unet: UNetConfig) -> str:
        """Of a folder with the whole student.

        Args:
          unet: its configuration.
        """
        scales = OTHER_SCALES[unet.time_cond_proj_dim is not None]
        return WHOLE.format(**self._facts(), other_scales=scales)

    def beside(self, adapters: Params, kept: float | None) -> str:
        """Of a LoRA beside the whole student, to be added to the card of that.

        Args:
          adapters: of the LoRA.
          kept: the share of the student's change that it has; None: all, it was trained so.
        """
        return f"\n## As a LoRA\n\n{self._as_lora(adapters, kept)}"

    def alone(self, adapters: Params, size: tuple[int, int]) -> str:
        """Of a folder with a LoRA alone.

        Args:
          adapters: of the LoRA.
          size: height and width that it was trained at, in pixels.
        """
        facts = self._facts() | {
            "size": "x".join(map(str, size)),
            "as_lora": self._as_lora(adapters),
        }
        return LORA_ALONE.format(**facts, other_scales=OTHER_SCALES[False])

    def _facts(self) -> dict[str, object]:
        return {
            "teacher": self.teacher,
            "pipeline": self.pipeline,
            "method": self.method.title or f"the method {self.method.name}",
            "steps": self.method.usual_steps,
            "w": self.method.w,
        }

    def _as_lora(self, adapters: Params, kept: float | None = None) -> str:
        what = "what was trained, a LoRA"
        if kept is not None:
            what = f"a LoRA that has {kept:.1%} of what was trained"
        scheduler = self.method.diffusers_scheduler()["_class_name"]
        comfyui = (
            "ComfyUI wants the keys of kohya: `slam-jax export` without `--lora-keys diffusers`"
        )
        if self.keys == "kohya":
            comfyui = COMFYUI + SAMPLERS.get(scheduler, "")
        return AS_LORA.format(
            **self._facts(),
            file=lora_file.FILE,
            rank=rank_of(adapters),
            what=what,
            scheduler=scheduler,
            comfyui=comfyui,
        )
