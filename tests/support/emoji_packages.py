"""Small packages of captioned emoji like npm's."""

import io
import json
import re
import tarfile

import numpy as np
import tar_files
from PIL import Image

from slam_jax.data.emoji_write import FLUENT, NOTO


def one(unified, name, category="Food & Drink", short="", tones=()):
    """An entry of emoji.json."""
    entry = {"unified": unified, "name": name, "category": category, "short_name": short}
    if tones:
        entry["skin_variations"] = {tone: {"unified": f"{unified}-{tone}"} for tone in tones}
    return entry


EMOJI = [
    one("1F34E", "RED APPLE"),
    one("2764-FE0F", "HEAVY BLACK HEART", "Smileys & Emotion", "heart"),
    one("1F5A4", "BLACK HEART", "Smileys & Emotion", "black_heart"),
    one("1F935", "MAN IN TUXEDO", "People & Body", "person_in_tuxedo"),
    one("1F935-200D-2642-FE0F", "MAN IN TUXEDO", "People & Body", "man_in_tuxedo"),
    one("1F44B", "WAVING HAND SIGN", "People & Body", tones=("1F3FB", "1F3FF")),
    one("1F91D", "HANDSHAKE", "People & Body", tones=("1F3FB-1F3FE",)),
    one("1F44C", "OK HAND SIGN", "People & Body", tones=("1F3FD",)),
    one("1F1E9-1F1EA", "Germany Flag", "Flags"),
    one("25AA-FE0F", "BLACK SMALL SQUARE", "Symbols"),
    one("1F3FB", "EMOJI MODIFIER FITZPATRICK TYPE-1-2", "Component"),
]


def picture(code, kind, size=16):
    """A colour that the first code point decides; partly opaque, half and not at all."""
    pixels = np.zeros((size, size, 4), np.uint8)
    pixels[..., :3] = [int(re.split("[-_]", code)[0][-2:], 16), 40, 200]
    pixels[:, size // 2 :, 3] = 255
    pixels[:4, :, 3] = 128
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, lossless=True)
    return file.getvalue()


def pack(folder, style, files, version=None, named=None):
    """What `npm pack` makes."""
    about = json.dumps({"name": style.package, "version": version or style.version}).encode()
    path = folder / (named or style.file)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in {"package/package.json": about, **files}.items():
            info, content = tar_files.member(name, content)
            tar.addfile(info, io.BytesIO(content))
    return path


def noto(emoji):
    codes = [entry["unified"].lower() for entry in emoji]
    for entry in emoji:
        codes += [tone["unified"].lower() for tone in entry.get("skin_variations", {}).values()]
    pictures = {f"package/img/google/64/{code}.png": picture(code, "PNG") for code in codes}
    sheets = {"package/img/google/sheets/64.png": b"one large picture of all"}
    return {"package/emoji.json": json.dumps(emoji).encode(), **sheets, **pictures}


def make_packages(folder):
    """Both styles, of EMOJI."""
    folder.mkdir()
    pack(folder, NOTO, noto(EMOJI))
    # Without U+FE0F, or with _ for -; one that emoji.json does not know; none of the tuxedos.
    codes = ["1f34e", "2764", "1f44b", "1f44b-1f3ff", "1f44c-1f3fd", "1f1e9_1f1ea", "1faff"]
    fluent = {f"package/assets/{code}.webp": picture(code, "WEBP", 24) for code in codes}
    pack(folder, FLUENT, fluent)
    return folder
