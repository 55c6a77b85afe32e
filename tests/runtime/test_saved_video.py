"""`--save-video`: every container plays, and nothing but an older one of it is replaced."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mate_edge.errors import UsageError
from mate_edge.runtime.outputs.answer import Answer
from mate_edge.runtime.outputs.video_file import CODECS, ENDS_BYTES, SavedVideo
from mate_edge.runtime.prediction import Prediction
from mate_edge.runtime.sources.files import ImageFile
from mate_edge.runtime.sources.source import Shot

av = pytest.importorskip("av", reason="PyAV is not installed")

FOUND = Prediction(
    label="cat", index=0, confidence=0.9, relative=[0.9, 0.1], exit=1, halted_by="policy",
    elapsed_ms=2.0, decode_ms=0.0, preprocess_ms=0.0, segment_ms=(1.0,), deadline_missed=False,
)  # fmt: skip
USUAL = tuple(number / 25 for number in range(60))


def save(
    path: Path, times: Sequence[float] = USUAL, size: tuple[int, int] = (64, 48)
) -> list[float]:
    """Save a video of noise; return the times of its frames, as they are read again."""
    rng = np.random.default_rng(0)
    video = SavedVideo(path, ImageFile("a source"))
    try:
        for number, time_s in enumerate(times, start=1):
            frame = rng.integers(0, 255, (size[1], size[0], 3), np.uint8)
            shot = Shot("clip", Path(), number, time_s)
            video.add(Answer(shot, frame, FOUND, "cat", 0.9))
    finally:
        video.close()
    with av.open(f"file:{path}") as container:
        return [frame.time for frame in container.decode(video=0)]


@pytest.mark.parametrize(
    ("suffix", "codec"), [(suffix, codec) for suffix in CODECS for codec in CODECS[suffix]]
)
def test_every_container_holds_the_frames_at_their_own_times_and_replaces_an_older_one(
    suffix: str, codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    monkeypatch.setitem(CODECS, suffix, (codec,))
    path = tmp_path / f"out{suffix}"
    assert save(path) == pytest.approx(USUAL, abs=0.002)
    assert path.stat().st_size > 3 * ENDS_BYTES  # the mark is looked for at its ends alone
    times = (0.0, 0.04, 0.5, 20.0)
    assert save(path, times) == pytest.approx(times, abs=0.002)
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_saved_video_is_never_replaced_but_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "notes.mp4"
    path.write_text("mate-edge run --save-video notes.mp4 clip.mp4")
    with pytest.raises(UsageError, match="notes.mp4 is there and is no video of run: choose"):
        save(path)
    assert path.read_text() == "mate-edge run --save-video notes.mp4 clip.mp4"
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(UsageError, match="cannot write .*folder.mp4: it is no file"):
        save(tmp_path / "folder.mp4")
    path.write_bytes(b"")
    assert len(save(path)) == 60


def test_a_name_may_begin_like_an_address_and_a_frame_be_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(save(Path("out:1.mp4"), size=(64, 1))) == 60


@pytest.mark.parametrize(
    ("name", "times", "size"),
    [
        ("wide.mp4", USUAL, (20_000, 2)),
        ("gap.avi", (0.0, 200.0), (64, 48)),
        ("gap.mp4", (0.0, 1e5, 1e5 + 1), (64, 48)),
    ],
)
def test_what_ffmpeg_cannot_write_is_a_line_and_leaves_no_part(
    name: str, times: Sequence[float], size: tuple[int, int], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"cannot write .*{name}, {size[0]}x{size[1]} by [^\n]*$"):
        save(tmp_path / name, times, size)
    assert list(tmp_path.iterdir()) == []
