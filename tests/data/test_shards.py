"""Which shards a pattern means, here and in stores."""

import http.server
import os
import re
import threading
from functools import partial
from pathlib import Path

import fsspec
import pytest
import tar_files
from braceexpand import braceexpand

from slam_jax.base.errors import InputError
from slam_jax.data import shards
from slam_jax.data.tar_shards import TarShards


def empty(folder, *names):
    return tar_files.write(folder, dict.fromkeys(names, b""))


def found(pattern):
    return [shard.location for shard in shards.find(str(pattern))]


def paths(folder, *names):
    return [f"{folder}/{name}" for name in names]


@pytest.mark.parametrize(
    "pattern",
    [
        "{0..999999999}.tar",
        "{00..99}{00..99}{00..99}{00..99}.tar",
        "{a,b}" * 30 + ".tar",
        "{x,{0..999}{0..9999}}.tar",
    ],
)
def test_a_pattern_of_too_many_shards_is_refused_before_it_is_spelt_out(tmp_path, pattern):
    with pytest.raises(InputError, match=r"more than 1,000,000 shards; name fewer"):
        shards.find(f"{tmp_path}/{pattern}")


@pytest.mark.parametrize(
    "pattern",
    [
        "{a,b}{0..3}",
        "{{0..7},{10..15}}.tar",
        "x{a,b{1..3}{c,d},}y",
        "{a}",
        "{}",
        "a{1..9..2}",
        "a,b",
    ],
)
def test_paths_are_counted_as_they_are_spelt_out(pattern):
    assert shards._count(pattern) == len([*braceexpand(pattern)])


def test_patterns(tmp_path, monkeypatch):
    a = empty(tmp_path / "a", "10.tar", "9.tar", "0.tar", "stats.json", "._0.tar", "0.parquet")
    b = empty(tmp_path / "b", "0.tar", "x/3.tar", "dir.tar/4.tar")
    assert found(a) == found(f"{a}/") == paths(a, "0.tar", "10.tar", "9.tar")
    assert found(a / "*.tar") == paths(a, "0.tar", "10.tar", "9.tar")
    assert found(a / "{10,0}.tar") == paths(a, "10.tar", "0.tar")  # as written
    assert found(a / "{9..10}.tar") == paths(a, "9.tar", "10.tar")
    assert found(f"{tmp_path}/{{b,a}}/0.tar") == [f"{b}/0.tar", f"{a}/0.tar"]
    assert found(f"{a}/9.tar::{b}/0.tar::{a}/1*.tar") == [
        *(f"{a}/9.tar", f"{b}/0.tar", f"{a}/10.tar"),
    ]
    assert found(f"file://{a}/9.tar") == paths(a, "9.tar")
    assert found(f"{b}/**/3.tar") == paths(b, "x/3.tar")
    assert found(b) == paths(b, "0.tar")  # and no folder
    monkeypatch.chdir(a)
    monkeypatch.setenv("HOME", str(b))
    assert found("9.tar::~/0.tar") == [f"{a}/9.tar", f"{b}/0.tar"]


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("{d}/{0..2}.tar", "{d}/2.tar: no such tar shard"),
        ("{d}/x*.tar", "{d}/x*.tar: no tar shard is there"),
        ("{d}/empty", "{d}/empty: no tar shard is there"),
        ("{d}/nowhere", "{d}/nowhere: no such tar shard"),
        ("{d}/0.tar::{d}/*.tar", "{d}/0.tar is in it twice"),
        ("{d}/{0,0}.tar", "{d}/0.tar is in it twice"),
        ("{d}/0.tar::", "an empty pattern"),
        ("", "an empty pattern"),
        ("pipe:cat {d}/0.tar", "pipe:cat {d}/0.tar: the output of a command has no random access"),
        ("{d}/z.tar.gz", "{d}/z.tar.gz: a compressed tar has no random access; decompress it"),
        ("{d}/zipped", "{d}/zipped/1.tar.gz: a compressed tar has no random access"),
        ("{d}/{{0..1}.tar", "cannot be read: UnbalancedBracesError"),
        ("{d}/pipe.tar", "{d}/pipe.tar: not a file"),
        ("memory://nowhere/0.tar", "nowhere/0.tar: no such tar shard"),
        ("memory://nowhere/*.tar", "nowhere/*.tar: no tar shard is there"),
        ("nonsense://a/0.tar", "nonsense://a/0.tar: cannot be read: ValueError: Protocol not"),
    ],
)
def test_refusals(tmp_path, pattern, said):
    empty(tmp_path, "0.tar", "1.tar", "z.tar.gz", "zipped/1.tar.gz", "empty/x.txt")
    (tmp_path / "hidden").mkdir()
    if "pipe.tar" in pattern:
        os.mkfifo(tmp_path / "pipe.tar")
    pattern, said = (text.replace("{d}", str(tmp_path)) for text in (pattern, said))
    with pytest.raises(InputError, match=re.escape(said)) as refused:
        shards.find(pattern)
    assert "\n" not in str(refused.value)


def test_a_missing_library_of_a_store_is_named(monkeypatch):
    def missing(_):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(InputError, match="s3://b/0.tar: .* not installed: Install s3fs"):
        shards.find("s3://b/0.tar")


@pytest.fixture
def memory():
    """fsspec's store in memory, empty."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def test_shards_in_a_store(tmp_path, memory):
    for number in range(3):
        content = tar_files.tar(tar_files.good(2, 2 * number))
        memory.pipe_file(f"/bucket/{number}.tar", content)
        tar_files.write(tmp_path / "data", {f"{number}.tar": content})
    here = TarShards(str(tmp_path / "data"), cache=tmp_path / "cache")
    memory.pipe_file("/bucket/._0.tar", b"AppleDouble")
    patterns = ("*.tar", "", "{0..2}.tar", "0.tar::memory://bucket/{1,2}.tar")
    for pattern in patterns:
        there = TarShards(f"memory://bucket/{pattern}", cache=tmp_path / "cache")
        assert [there[n] for n in range(6)] == [here[n] for n in range(6)]
        assert there.identity == here.identity
    made = sorted((tmp_path / "cache").iterdir())
    assert len(made) == 6

    with pytest.raises(InputError, match="bucket/0.tar is in it twice"):
        shards.find("memory://bucket/*.tar::memory:///bucket/0.tar")
    memory.pipe_file("/bucket/1.tar", tar_files.tar(tar_files.good(2, 7)))  # of the same size
    again = TarShards("memory://bucket/", cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 7
    assert again[2].name == "1.tar/00007"
    memory.rm("/bucket/1.tar")
    with pytest.raises(InputError, match=r"bucket/1\.tar: is gone or has changed"):
        again[3]


def test_an_error_of_a_store_that_passes_is_borne(tmp_path, memory, monkeypatch):
    memory.pipe_file("/bucket/0.tar", tar_files.tar(tar_files.good(2)))
    examples = TarShards("memory://bucket/0.tar", cache=tmp_path)
    pauses, errors, whole = [], [RuntimeError("busy")] * 2, type(memory).cat_file

    def cat_file(*arguments, **options):
        if errors:
            raise errors.pop()
        return whole(*arguments, **options)

    monkeypatch.setattr(type(memory), "cat_file", cat_file)
    monkeypatch.setattr(shards.time, "sleep", pauses.append)
    assert examples[1].captions == ("caption 1",)
    assert pauses == [1, 2]
    errors += [RuntimeError("busy")] * 3
    with pytest.raises(InputError, match=r"bucket/0\.tar: cannot be read: RuntimeError: busy"):
        examples[1]
    errors.append(RuntimeError("busy"))
    monkeypatch.setattr(type(memory), "cat_file", lambda *a, **k: whole(*a, **k)[:-1])
    with pytest.raises(InputError, match="is gone or has changed"):
        examples[1]


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Files, or the range of one that is asked for."""

    def do_GET(self):
        path = self.translate_path(self.path)
        if not Path(path).exists():
            self.send_error(404)
            return
        content = Path(path).read_bytes()
        begin, end = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups()
        part = content[int(begin) : int(end) + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {begin}-{end}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_):
        pass


@pytest.mark.filterwarnings("default")  # of the library
def test_shards_on_a_web_server(tmp_path):
    tar_files.write(
        tmp_path / "data", {f"{n}.tar": tar_files.tar(tar_files.good(2, n)) for n in range(2)}
    )
    handler = partial(Ranges, directory=tmp_path / "data")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        pattern = f"http://127.0.0.1:{server.server_port}/{{0..1}}.tar?token=1"
        here = TarShards(str(tmp_path / "data"), cache=tmp_path / "cache")
        there = TarShards(pattern, cache=tmp_path / "cache")
        assert [there[n] for n in range(4)] == [here[n] for n in range(4)]
        with pytest.raises(InputError, match=r"2\.tar\?token=1: no such tar shard"):
            TarShards(pattern.replace("1}", "2}"), cache=tmp_path / "cache")
        server.shutdown()
