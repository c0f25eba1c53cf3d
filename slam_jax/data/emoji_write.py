"""Makes the folder that `emoji` reads, of packages as `npm pack` puts them on the disk.

The names come from emoji.json of emoji-datasource, the pictures of other styles are found by their
code points.
"""

import hashlib
import io
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from slam_jax.base.errors import InputError
from slam_jax.base.json_file import parse_json, write_json
from slam_jax.data import images
from slam_jax.data.emoji import FORMAT, RECORD_FILE, SPLITS
from slam_jax.data.rejects import Rejected


class Style(NamedTuple):
    """A set of pictures, one for each emoji.

    Attributes:
      name: the first word of its captions.
      package: of npm.
      version: the one that was looked through: names, folders and counts are its.
      folder: of the pictures in it.
      licence: of the pictures.
    """

    name: str
    package: str
    version: str
    folder: str
    licence: str

    @property
    def file(self) -> str:
        """What `npm pack` calls it."""
        return f"{self.stem}-{self.version}.tgz"

    @property
    def stem(self) -> str:
        return self.package.lstrip("@").replace("/", "-")


NOTO = Style(
    "noto", "emoji-datasource-google", "16.0.0", "package/img/google/64/", "Apache-2.0 (Google)"
)
FLUENT = Style("fluent", "@lobehub/fluent-emoji-3d", "1.1.0", "package/assets/", "MIT (Microsoft)")
OPENMOJI = Style("openmoji", "openmoji", "17.0.0", "package/color/svg/", "CC-BY-SA-4.0 (OpenMoji)")
STYLES = (NOTO, FLUENT, OPENMOJI)
NAMES = "package/emoji.json"  # in NOTO's package
ABOUT = "package/package.json"
# What is left out unless it is asked for; the category of emoji.json, or "".
EXTRAS = {"flags": "Flags", "symbols": "Symbols", "components": "Component", "skin_tones": ""}
# Unicode's modifiers, in CLDR's words.
SKIN_TONES = {
    "1F3FB": "light skin tone",
    "1F3FC": "medium-light skin tone",
    "1F3FD": "medium skin tone",
    "1F3FE": "medium-dark skin tone",
    "1F3FF": "dark skin tone",
}
HELD_OUT = 10  # one concept of so many
COMMANDS = "; ".join(f"npm pack {style.package}@{style.version}" for style in STYLES)
GET = f"run there: {COMMANDS} (npm comes with Node.js; the last is for --openmoji alone)"


class Concept(NamedTuple):
    """An emoji, with all its skin tones.

    Attributes:
      code: its code points, such as "1f34e", or "1f468-200d-1f33e" for several.
      names: of each picture that is wanted of it, by the picture's code points.
    """

    code: str
    names: dict[str, str]

    @property
    def split(self) -> str:
        """Which of SPLITS it is in; decided by its code points alone, whatever else is there."""
        digest = hashlib.sha256(self.code.encode()).hexdigest()
        return "held_out" if int(digest, 16) % HELD_OUT == 0 else "train"


class Package(NamedTuple):
    """What is wanted of a package.

    Attributes:
      files: contents by name.
      sha256: of the .tgz.
    """

    files: dict[str, bytes]
    sha256: str


def read_package(folder: Path, style: Style) -> Package:
    """Reads a .tgz in one pass: random access would unpack it again for each picture.

    Raises:
      InputError: it is missing, of another version, or damaged.
    """
    path = folder / style.file
    if not path.is_file():
        others = sorted(one.name for one in folder.glob(f"{style.stem}-[0-9]*.tgz"))
        if others:
            found = others[0].removeprefix(f"{style.stem}-").removesuffix(".tgz")
            raise _other_version(folder / others[0], style, found)
        raise InputError(f"{folder}: no {style.file}; {GET}")
    files = {}
    try:
        with tarfile.open(path, "r:gz") as tar:
            for member in tar:
                name = member.name
                if name in (ABOUT, NAMES) or name.startswith(style.folder):
                    content = tar.extractfile(member)
                    files[name] = content.read() if content else b""
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        version = parse_json(files[ABOUT])["version"]
    except (OSError, EOFError, tarfile.TarError, zlib.error, ValueError, LookupError) as error:
        why = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read ({why}); remove it, and {GET}") from error
    if version != style.version:
        raise _other_version(path, style, version)
    return Package(files, sha256)


def _other_version(path: Path, style: Style, found: str) -> InputError:
    return InputError(
        f"{path}: {style.package} {found}, expected {style.version}; in that folder run "
        f"npm pack {style.package}@{style.version}"
    )


def plain_code(code: str) -> str:
    """Code points as all packages agree on them: without those that only choose how a character is
    shown (U+FE0F) or end a flag (U+E007F), which packages leave out here and there."""
    points = re.split("[-_]", code.lower())
    return "-".join(p.zfill(4) for p in points if p not in ("fe0f", "e007f"))


def concepts_of(emoji: Sequence[Mapping[str, Any]], extras: Sequence[str]) -> list[Concept]:
    """The emoji that are wanted, in the order of their code points.

    Args:
      emoji: the content of emoji.json.
      extras: which of EXTRAS are wanted too.
    """
    left_out = {category for extra, category in EXTRAS.items() if extra not in extras}
    counts, found = Counter(one["name"].lower() for one in emoji), []
    for one in emoji:
        if one["category"] in left_out:
            continue
        name = _name(one, counts)
        names = {plain_code(one["unified"]): name}
        if "skin_tones" in extras:
            for tones, variant in one.get("skin_variations", {}).items():
                words = ", ".join(SKIN_TONES[tone] for tone in tones.split("-"))
                names[plain_code(variant["unified"])] = f"{name}, {words}"
        found.append(Concept(plain_code(one["unified"]), names))
    return sorted(found, key=lambda concept: concept.code)


def _name(one: Mapping[str, Any], counts: Counter) -> str:
    """Unicode's name in lower case, or the short name where two emoji share it.

    In Unicode's older names "black" and "white" mean filled and outlined: HEAVY BLACK HEART is red.
    """
    name = one["name"]
    if counts[name.lower()] > 1:
        return one["short_name"].replace("_", " ")
    old = int(one["unified"].split("-")[0], 16) < 0x3000 or "POINTING" in name
    if old and one["category"] != EXTRAS["symbols"]:
        name = re.sub(r"^((HEAVY|BLACK|WHITE|MEDIUM) )+", "", name)
    return name.lower()


def picture(content: bytes, name: str, size: int) -> bytes:
    """A picture on white, as a PNG.

    Args:
      content: of a PNG, WebP or SVG file.
      name: of the file.
      size: pixels of a side.

    Raises:
      InputError: it is damaged, or it is an SVG and the package that draws it is missing.
    """
    try:
        if name.endswith(".svg"):
            content = _drawn(content, size)
        image = images.decode(content, name)
    except Rejected as rejected:
        raise InputError(f"{name}: {rejected.reason}; remove the package, and {GET}") from rejected
    file = io.BytesIO()
    image.resize((size, size), Image.Resampling.LANCZOS).save(file, "PNG", optimize=True)
    return file.getvalue()


def _drawn(svg: bytes, size: int) -> bytes:
    try:
        import resvg_py
    except ImportError as error:
        raise InputError(
            f"--openmoji: needs resvg-py ({error}); pip install 'slam_jax[emoji]'"
        ) from error
    text = svg.decode(errors="replace")
    try:
        return resvg_py.svg_to_bytes(text, width=size, height=size, skip_system_fonts=True)
    except ValueError as error:
        raise Rejected("damaged SVG", "") from error


def pictures_of(
    package: Package, style: Style, concepts: Sequence[Concept], size: int
) -> dict[str, dict[str, bytes]]:
    """The files of a style's tars: for each of SPLITS, contents by name."""
    there = {}
    for name in sorted(package.files, key=len):  # the longest, most explicit name wins
        if name.startswith(style.folder):
            there[plain_code(Path(name).stem)] = name
    made: dict[str, dict[str, bytes]] = {split: {} for split in SPLITS}
    for concept in concepts:
        for code, name in concept.names.items():
            if code in there:
                content = package.files[there[code]]
                files = made[concept.split]
                files[f"{code}.png"] = picture(content, there[code], size)
                files[f"{code}.txt"] = f"{style.name} emoji of {name}".encode()
    return made


def write_tar(path: Path, files: Mapping[str, bytes]) -> None:
    """A tar with the same bytes each time: no dates, no owners."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write(
    out: Path, packages: Mapping[Style, Package], extras: Sequence[str], size: int
) -> dict[str, Any]:
    """Writes all into a folder that is there.

    Args:
      out: the folder.
      packages: as `read_package` gives them; NOTO's is among them.
      extras: which of EXTRAS are wanted too.
      size: pixels of a side.

    Returns:
      what is in RECORD_FILE.

    Raises:
      InputError: a picture cannot be read.
    """
    concepts = concepts_of(parse_json(packages[NOTO].files[NAMES]), extras)
    about: dict[str, dict[str, Any]] = {}
    for style, package in packages.items():
        facts = {"package": style.package, "version": style.version, "sha256": package.sha256}
        made = pictures_of(package, style, concepts, size)
        for split, files in made.items():
            (out / split).mkdir(exist_ok=True)
            if files:
                write_tar(out / split / f"{style.name}.tar", files)
        counts = {split: len(files) // 2 for split, files in made.items()}
        about[style.name] = {**facts, "license": style.licence, **counts}
    record = {
        "format": FORMAT,
        "size": size,
        "include": list(extras),
        "pictures": sum(about[name][split] for name in about for split in SPLITS),
        "styles": about,
        "split": {
            "rule": f"held out where SHA-256 of the concept's code points is divisible by "
            f"{HELD_OUT}; code points as in the list, without fe0f and e007f",
            "concepts": len(concepts),
            "held_out": [concept.code for concept in concepts if concept.split == "held_out"],
        },
    }
    write_json(out / RECORD_FILE, record)
    return record
