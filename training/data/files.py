"""The videos of a folder: files, by their extension or content, folders of pictures, tar shards."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import Any

from training.data.samples import Shard, ShardError, read_shard
from training.data.threads import in_threads
from training.support.command import UserError

INDEX_NAME = "fastseq_index.sqlite"
LABELS_NAME = "labels.json"
CARRIED_NAME = "labels.propagated.json"  # what `training.propagate` writes
NO_ENDING = "without ending"


def _endings(text: str) -> set[str]:
    return {f".{ending}" for ending in text.split()}


_TAKEN = _endings("""
264 265 266 3g2 3gp 3gpp amv asf avc avi av1 divx dv f4v flv gif gxf h261 h263 h264 h265 h266 hevc
ivf m1v m2t m2ts m2v m4v mjpeg mjpg mk3d mkv mov mp4 mpe mpeg mpg mpv mpv2 mts mxf nut obu ogm ogv
qt rm rmvb tod ts vc1 vob vvc webm wmv wtv xvid y4m
""")
PICTURES = _endings("""
apng arw avif bmp cr2 cr3 cur dds dng dpx exr hdr heic heif ico j2k jfif jp2 jpe jpeg jpg jxl mpo
nef pbm pcx pfm pgm png pnm ppm psd ras raw sgi svg tga tif tiff webp xbm xcf xpm
""")
_PASSED_OVER = PICTURES | _endings("""
aac ac3 aif aiff amr ape au caf dts eac3 flac m3u m3u8 m4a m4b mid midi mka mp2 mp3 mpa mpc oga opus
pls ra wav wma wv ass cue idx lrc sbv smi srt ssa sub sup ttml vtt
7z bz2 gz iso jar lz4 rar tar tgz whl xz zip zst
bib cfg conf css csv doc docx eaf htm html ini ipynb json jsonl ldjson log markdown md ods odt pdf
pptx rst rtf tex textgrid toml torrent trc tsv txt xls xlsx xml yaml yml nfo
bat c cc cpp cu go h hpp ipp java js lua m php pl ps1 py pyc pyi r rb rs sh so sql
aria2 bak bin ckpt crdownload db dll download egg-info err exe feather flo h5 hdf5 joblib lmdb lock
lnk mat mdb mmap msgpack npy npz old onnx orig out parquet part partial pb pickle pid pkl pt pth
safetensors sqlite swp tfrecord tmp weights bvh c3d obj ply stl vtk md5 sha1 sha256
""")
# FFmpeg's demuxers of video files, without those that also accept pictures, texts, playlists (which
# open other files) or arbitrary data.
_CONTAINERS = (
    "3g2,3gp,asf,av1,avi,bink,cavsvideo,dhav,dirac,dv,flic,flv,gxf,h261,"
    "h263,h264,hevc,ivf,kux,live_flv,lvf,m4a,m4v,matroska,mj2,mlv,mov,"
    "mp4,mpeg,mpegts,mpegvideo,mxf,nsv,nut,nuv,obu,ogg,r3d,rm,roq,smk,"
    "swf,ty,vc1,vc1test,vivo,vvc,webm,wtv,yuv4mpegpipe"
)
# Formats that FFmpeg reads as video although they are pictures or coloured text.
_NO_VIDEO = re.compile(r"image2|.*_pipe|apng|fits|ico|iff|jpegxl_anim|adf|bin|idf|tty|xbin")
_STILLS = {"avif", "avis", "heic", "heim", "heis", "heix", "mif1", "msf1"}  # brands of ISO files
_PROBE = {"probesize": "1000000", "analyzeduration": "2000000"}  # bytes, microseconds
_SECONDS = 5.0


@dataclass(frozen=True)
class Found:
    """The videos and other files of a folder: sorted names relative to it, with forward slashes.

    Attributes:
        videos: files, folders of pictures and samples of tar files that are used as videos.
        ignored: other files -> their extension, or what they are if not regular files.
        looked: the ignored files whose content was checked.
        unmatched: patterns of `include` that match no file.
        closed: folders and tar files that cannot be read, with the reason.
        sequences: numbered pictures that are not used, with the reason and the remedy.
        places: video -> its locator relative to the folder, where that is not its name.
        entries: video -> its entry for the labels file, from a shard's JSON.
        pictures: the videos that are folders of pictures, or pictures in a tar file.
        unused: extension -> number of members of shards that are neither media nor labels.
    """

    videos: list[str]
    ignored: dict[str, str]
    looked: list[str]
    unmatched: list[str]
    closed: list[str]
    sequences: list[Any] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    pictures: list[str] = field(default_factory=list)
    unused: dict[str, int] = field(default_factory=dict)

    def place(self, name: str) -> str:
        """The locator of a video relative to the folder."""
        return self.places.get(name, name)


def find_videos(
    folder: Path,
    include: Iterable[str] = (),
    *,
    pictures: str | None = None,
    progress: bool = False,
) -> Found:
    """Search a folder for videos, to any depth.

    A file with the extension of a video is used, one with another known extension is ignored, and
    the content of any other file is checked, at most the first megabyte. A folder without video
    files is one video if it has at least 3 JPEG, PNG or WebP pictures whose names differ in one
    number. Videos and folders of frames in tar files are used. Hidden files and folders are
    ignored; links are followed.

    Args:
        include: patterns (`*.dat`, `clips/a?`) of files whose content is checked whatever their
            extension. They are compared with the relative path and with the name alone. Pictures
            are never used.
        pictures: pattern (`img_*`, `rgb/*/*`) of the numbered pictures to use; compared with the
            relative path and with the name. None: those of folders with one sequence alone.
        progress: show a bar while contents are checked.
    Raises:
        UserError: the folder itself is one sequence of pictures, or `pictures` matches none.
    """
    names, closed = list_files(folder)
    include = [*include]
    videos, ignored, unknown, tars = [], {}, [], []
    in_folders: dict[str, list[str]] = defaultdict(list)
    for name in names:
        taken = by_name(name, include)
        path = folder / name
        if taken is not False and not path.is_file():
            ignored[name] = "broken link" if path.is_symlink() else "not a regular file"
        elif taken is None:
            unknown.append(name)
        elif taken:
            videos.append(name)
        else:
            ending = ending_of(name)
            ignored[name] = ending or NO_ENDING
            if ending in PICTURES:
                parent, _, short = name.rpartition("/")
                in_folders[parent or "."].append(short)
            elif ending == ".tar":
                tars.append(name)

    def look(name: str) -> bool:
        return holds_video(folder / name, asked=_matches(name, include))

    looked = []
    verdicts = in_threads(look, unknown, "looking into other files", progress and bool(unknown))
    for name, video in zip(unknown, verdicts, strict=True):
        if video:
            videos.append(name)
        else:
            looked.append(name)
            ignored[name] = ending_of(name) or NO_ENDING
    places: dict[str, str] = {}
    entries: dict[str, dict[str, Any]] = {}
    unused: Counter[str] = Counter()
    in_tars: list[str] = []
    for tar, shard in _shards_in(folder, tars, progress).items():
        if isinstance(shard, ShardError):
            closed.append(f"{tar}: {shard.reason}")
            continue
        if not shard.samples:
            continue
        del ignored[tar]
        unused.update(shard.ignored)
        for sample in shard.samples:
            name = f"{tar}/{sample.name}"
            videos.append(name)
            places[name] = f"{tar}#{sample.offset}+{sample.size}"
            if sample.pictures:
                in_tars.append(name)
            if sample.entry:
                entries[name] = sample.entry
    frame_folders, sequences = _frame_folders(folder, in_folders, videos, pictures, ignored, places)
    unmatched = [p for p in include if not any(_matches(name, [p]) for name in names)]
    return Found(
        sorted([*videos, *frame_folders]),
        dict(sorted(ignored.items())),
        looked,
        unmatched,
        closed,
        sequences,
        places,
        entries,
        [*frame_folders, *in_tars],
        dict(unused.most_common()),
    )


def _frame_folders(
    folder: Path,
    in_folders: dict[str, list[str]],
    videos: list[str],
    pattern: str | None,
    ignored: dict[str, str],
    places: dict[str, str],
) -> tuple[list[str], list[Any]]:
    """The folders of pictures that are videos, and the sequences that are not used.

    Their pictures are taken out of `ignored`; locators of some go into `places`.
    """
    from fastseq.video.pictures_listing import sequences_of
    from training.data.pictures import Pictures, pick_sequences

    with_videos = {name.rpartition("/")[0] or "." for name in videos}
    chosen, at, sequences = pick_sequences(in_folders, with_videos, pattern, frozenset(PICTURES))
    top = chosen.pop(".", None)
    if top is not None:
        if not videos and not chosen:
            raise UserError(
                f"{folder} is itself the frames of one video ({top}): pass the folder that "
                f"contains it, {folder.parent}"
            )
        why = "they lie in the folder itself; move them into a folder below it"
        sequences.insert(0, Pictures(".", (str(top),), why))
    if pattern is not None and not chosen:
        has = [
            f"{name} ({', '.join(map(str, sequences_of(in_folders[name])))})" for name in in_folders
        ]
        raise UserError(
            f"--pictures {pattern!r} picks one sequence of numbered pictures in no folder of "
            f"{folder}: expected the beginning of their names, such as 'img_*', or a path, such as "
            f"'rgb/*/*'; found {', '.join(has[:3]) or 'no pictures'}"
        )
    for name, sequence in chosen.items():
        for picture in sequence.names:
            del ignored[f"{name}/{picture}"]
    places.update({name: place for name, place in at.items() if name in chosen})
    return sorted(chosen), sequences


def _shards_in(folder: Path, tars: list[str], progress: bool) -> dict[str, Shard | ShardError]:
    """Tar file -> its samples, or why they cannot be found."""

    def look(name: str) -> Shard | ShardError:
        try:
            return read_shard(folder / name)
        except ShardError as error:
            return error
        except OSError as error:
            return ShardError(folder / name, str(error.strerror or error))

    found = in_threads(look, tars, "looking into shards", progress and bool(tars))
    return dict(zip(tars, found, strict=True))


def stamp_of(place: str | os.PathLike) -> list[int]:
    """By which a changed video is recognised: its file's size and time of modification, or the
    number of files in its folder and the folder's time of modification."""
    from fastseq.video.source import file_of

    path = file_of(place)
    status = path.stat()
    return [len(os.listdir(path)) if path.is_dir() else status.st_size, status.st_mtime_ns]


def list_files(folder: Path) -> tuple[list[str], list[str]]:
    """(relative paths of the files, folders that cannot be read), both sorted."""
    names, closed, seen = [], [], set()

    def refused(error: OSError) -> None:
        closed.append(f"{os.path.relpath(error.filename, folder)}: {error.strerror}")

    for root, folders, files in os.walk(folder, onerror=refused, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:  # a link back to a parent
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = Path(root).relative_to(folder).as_posix()
        before = "" if inside == "." else f"{inside}/"
        names += [
            before + name
            for name in files
            if not name.startswith((".", "fastseq_index."))
            and name not in (LABELS_NAME, CARRIED_NAME)
        ]
    return sorted(names), sorted(closed)


def by_name(name: str, include: Sequence[str] = ()) -> bool | None:
    """Whether a file is a video according to its name; None if its content must decide."""
    ending = ending_of(name)
    if ending in _TAKEN:
        return True
    if ending in PICTURES:
        return False
    if _matches(name, include):
        return None
    if ending in _PASSED_OVER or name.endswith("~") or ".tfevents." in name:
        return False
    return None


def ending_of(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _matches(name: str, include: Iterable[str]) -> bool:
    short = name.rpartition("/")[2]
    return any(fnmatchcase(name, one) or fnmatchcase(short, one) for one in include)


def as_patterns(folder: Path, given: Iterable[str]) -> list[str]:
    """Patterns for `find_videos`, from patterns and from paths into which a shell expanded them."""
    patterns = []
    for one in given:
        path = Path(os.path.abspath(one))
        if path.is_file() and path.is_relative_to(folder):
            one = escape(path.relative_to(folder).as_posix())
        patterns.append(one.removeprefix("./"))
    return patterns


def holds_video(path: Path, *, asked: bool = False) -> bool:
    """Whether FFmpeg finds a video, not a cover or a picture, at the beginning of a file.

    Args:
        asked: the user declares it a video, so a file that cannot be opened is a damaged video.
    """
    from fastseq.video._av import require_av

    av = require_av()
    options = dict(_PROBE) if asked else _PROBE | {"format_whitelist": _CONTAINERS}
    try:
        with av.open(
            f"file:{path}", options=options, timeout=_SECONDS, metadata_errors="replace"
        ) as container:
            if _NO_VIDEO.fullmatch(container.format.name):
                return False
            if container.metadata.get("major_brand") in _STILLS:
                return False
            cover = av.stream.Disposition.attached_pic
            return any(
                stream.codec_context is not None and not stream.disposition & cover
                for stream in container.streams.video
            )
    except (av.error.FFmpegError, OSError, ValueError):
        return asked
