"""What the README.md and the record of an export tell their users."""

from dataclasses import dataclass

from slam_jax.formats import lora_file
from slam_jax.method.method import Method
from slam_jax.method.schedule import Schedule
from slam_jax.models.functional import Params
from slam_jax.models.lora import rank_of

WHOLE_USAGE = (
    "{pipeline}.from_pretrained(folder{loaded})(prompt, {call}). Guidance is built in; README.md "
    "says what another guidance_scale would do."
)
LORA_USAGE = (
    "load_lora_weights(folder) on the pipeline of the teacher, with the scheduler of this folder; "
    "then {call}. Guidance is built in."
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

pipeline = {pipeline}.from_pretrained("path/to/this/folder"{loaded})
prompt = "a lighthouse by the sea at sunset"
image = pipeline(prompt, {call}).images[0]
image.save("lighthouse.png")
```

Keep `guidance_scale=1`: the student has its guidance (w = {w:g}) built in.
{other_scales}
{sigmas}
`slam-jax sample --model path/to/this/folder --prompt "..." --steps {steps} --out picture.png`
draws with JAX, and `slam_jax.load("path/to/this/folder")` reads it in Python.

Everything but the {denoiser} and the scheduler's configuration is a copy of the teacher's. Its
licence holds for this model too.
"""
AS_LORA = """`{file}` is {what}, of rank {rank}. It makes
{teacher} draw in few steps, and with luck its fine-tunes too.

```python
from diffusers import {pipeline}, {scheduler}

pipeline = {pipeline}.from_pretrained("{teacher}"{loaded})
pipeline.load_lora_weights("path/to/this/folder")
pipeline.scheduler = {scheduler}.from_pretrained("path/to/this/folder", subfolder="scheduler")
image = pipeline("a lighthouse by the sea", {call}).images[0]
```
{comfyui}"""
LORA_ALONE = """# A LoRA that makes {teacher} draw in few steps

Distilled by slam_jax with {method}, at
{size} pixels; `slam.json` says with which options.

{as_lora}
Keep `guidance_scale=1`: the LoRA has its guidance (w = {w:g}) built in.
{other_scales}
{sigmas}
`slam-jax sample --model path/to/this/folder --prompt "..." --steps {steps} --out picture.png`
draws with JAX where {teacher} is still to be found;
`--model BASE --lora path/to/this/folder` draws with another base.

The teacher's licence holds for this LoRA too.
"""
# How ComfyUI draws as a scheduler of diffusers does.
COMFYUI = "\nComfyUI loads the file as any LoRA, at strength 1"
NO_COMFYUI = (
    "\nComfyUI wants the keys of kohya: `slam-jax export` without `--lora-keys diffusers`.\n"
)
DENOISERS = {"unet": "UNet", "transformer": "transformer"}  # by their folders
SIGMAS = """
The scheduler spaces its steps in another way where it is not given `sigmas`. They are:

| steps | sigmas |
| --- | --- |
{rows}
"""
STEPS = (1, 2, 4, 8)  # whose sigmas are listed
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
      schedule: its teacher's.
      denoiser: folder of its denoiser.
      left_out: parts that the pipeline has to be told to do without.
      keys: the layout of its LoRA, one of `lora_file.KEYS`.
    """

    teacher: str
    pipeline: str
    method: Method
    schedule: Schedule
    denoiser: str
    left_out: tuple[str, ...] = ()
    keys: str = "kohya"

    @property
    def sigmas(self) -> dict[str, list[float]]:
        """Steps -> what the scheduler has to be given; empty: it needs nothing."""
        found = {}
        for steps in {*STEPS, self.method.usual_steps}:
            try:
                times = self.method.timesteps(steps, self.schedule)
            except ValueError:  # more steps than there are points
                continue
            if (sigmas := self.schedule.sigmas_for(times)) is not None:
                found[str(steps)] = sigmas
        return dict(sorted(found.items(), key=lambda item: int(item[0])))

    def usage(self, whole: bool) -> str:
        """How to draw with an export, in a sentence.

        Args:
          whole: whether it has the whole student.
        """
        return (WHOLE_USAGE if whole else LORA_USAGE).format(**self._facts())

    def whole(self) -> str:
        """Of a folder with the whole student."""
        return WHOLE.format(**self._facts(), other_scales=OTHER_SCALES[self.method.tells_gamma])

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
            "call": self._call(),
            "denoiser": DENOISERS[self.denoiser],
            "loaded": "".join(f", {name}=None" for name in self.left_out),
            "sigmas": SIGMAS.format(rows=self._rows()) if self.sigmas else "",
        }

    def _call(self) -> str:
        steps = self.method.usual_steps
        given = f", sigmas={self.sigmas[str(steps)]}" if self.sigmas else ""
        return f"num_inference_steps={steps}{given}, guidance_scale=1"

    def _rows(self) -> str:
        return "\n".join(
            f"| {steps} | {', '.join(f'{sigma:g}' for sigma in sigmas)} |"
            for steps, sigmas in self.sigmas.items()
        )

    def _as_lora(self, adapters: Params, kept: float | None = None) -> str:
        what = "what was trained, a LoRA"
        if kept is not None:
            what = f"a LoRA that has {kept:.1%} of what was trained"
        scheduler = self.method.diffusers_scheduler(self.schedule)["_class_name"]
        comfyui = ""
        if self.keys == "kohya":
            comfyui = f"{COMFYUI}{SAMPLERS.get(scheduler, '')}.\n"
        elif lora_file.LAYOUTS[self.denoiser] == lora_file.KEYS:
            comfyui = NO_COMFYUI
        return AS_LORA.format(
            **self._facts(),
            file=lora_file.FILE,
            rank=rank_of(adapters),
            what=what,
            scheduler=scheduler,
            comfyui=comfyui,
        )
