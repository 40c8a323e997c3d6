"""Video decoding against the baseline: speed, faithfulness, sparse sampling, shared decodes.

    python benchmarks/video.py [FOLDER]

FOLDER: videos, by default ../shared/media/videos beside the checkout; generated ones are added. The baseline decodes
everything in order, and makes patches of the target frames by `frame.to_image()`, Pillow's bicubic and a numpy reshape. Ours
is what `build` does. CPU time of one thread, the two taking turns, the least of 5 rounds. Columns, for 16 frames of 256 tokens:

    clip       ratio at 8 frames a second, all included: opening, decoding, frames
    dense      ratio where every frame of the source is taken
    frames   ratio without what both must do: opening and decoding; the frames are at hand
    dB         worst of 4 frames at 6 sizes (1/0.8 to 1/5), against a float64 reference
    sparse     one frame a second over the whole video: time of decoding everything over ours
    demux      a pass over the packets, as a share of decoding everything
    K=4        four clips one by one over four clips that share a decode
"""

import io
import sys
from collections.abc import Callable

import av
import numpy as np
from harness import ROOT, SHARED, cpu, read, say_where
from PIL import Image

# the makers of videos and the reference are the tests'
sys.path.append(str(ROOT / "tests"))

from support.media_files import video
from support.video_oracles import psnr, reference_pixels

from patchpack.pipeline.media.patchify import patchify
from patchpack.pipeline.media.video.clips import ClipRule, take_clip
from patchpack.pipeline.media.video.decode import ClipTarget, decode_clip, decode_clips
from patchpack.pipeline.media.video.frame import Scaler, colour_of, oriented_size
from patchpack.pipeline.media.video.timeline import VideoHeader, probe

ROUNDS = 5
SIDE, TUBELET = 256, (1, 16, 16)
SHRINKS = (0.8, 1.3, 2, 3, 3.9, 5)
AMID = ("libdav1d", "vp8", "vp9", "mjpeg", "mpeg1video")
COLUMNS = ("clip", "dense", "frames_by_time", "dB", "sparse", "demux", "K=4")


def generated() -> dict[str, bytes]:
    """Returns videos of what the shared ones lack: short groups, other codecs, high definition."""
    x264 = {"preset": "veryfast", "crf": "23", "g": "30"}
    return {
        "h264 720p, groups of 30": video((720, 1280), num_frames=150, rate=30, b_frames=2, options=x264),
        "h264 480p ts": video((480, 640), "mpegts", 150, 30, codec="libx264", b_frames=2, options=x264),
        "mpeg2 480p ts": video((480, 640), "mpegts", 150, 30, b_frames=2, options={"g": "15"}),
        "vp9 480p": video((480, 640), "webm", 100, 25, codec="libvpx-vp9",
                          options={"g": "25", "cpu-used": "8", "deadline": "realtime"}),
        "mjpeg 480p avi": video((480, 640), "avi", 100, 25),
        "hevc 480p": video((480, 640), "mp4", 100, 25, b_frames=3, codec="libx265",
                           options={"x265-params": "log-level=none:keyint=25", "preset": "ultrafast"}),
    }  # fmt: skip


def main() -> None:
    """Prints one line a video and the worst of each column."""
    folder = read(__doc__, folder=SHARED / "media/videos").folder
    say_where()
    videos = {path.name: path.read_bytes() for path in sorted(folder.iterdir())} if folder.is_dir() else {}
    print(f"{'':26}" + "".join(f"{name:>10}" for name in COLUMNS))
    rows = []
    for name, data in (videos | generated()).items():
        rows.append(figures(data))
        print(f"{name:26}" + "".join(f"{value:10.2f}" for value in rows[-1]), flush=True)
    for what, choose in (("least", np.min), ("median", np.median), ("most", np.max)):
        print(f"{what:26}" + "".join(f"{value:10.2f}" for value in choose(np.array(rows), axis=0)))


def figures(data: bytes) -> tuple[float, ...]:
    """Returns the columns for one video."""
    header = probe(io.BytesIO(data))
    clip, dense = (take_clip(header, ClipRule(stride=stride), 0) for stride in (None, 1))
    seconds = take_clip(header, ClipRule(num_frames=10**4, fps=1.0), 0)
    ratios = [
        ratio(lambda taken=taken: usual(data, taken.pts), lambda taken=taken: ours(data, taken.pts, taken.entries))
        for taken in (clip, dense)
    ]
    frames, left = some_frames(data)
    scaler = Scaler(SIDE, SIDE)
    frames_by_time = ratio(
        lambda: [patchify(baseline_frame(frame)[None], TUBELET) for frame in frames],
        lambda: [patchify(scaler.pixels(frame)[None], TUBELET) for frame in frames],
    )
    decibels = min(faithfulness(frame, left) for frame in frames)
    sparse = ratio(lambda: ours(data, seconds.pts, ()), lambda: ours(data, seconds.pts, seconds.entries))
    demux = ratio(lambda: packets(data, False), lambda: packets(data, True))
    return *ratios, frames_by_time, decibels, sparse, demux, shared(data, header)


def ratio(one: Callable[[], object], other: Callable[[], object]) -> float:
    """Returns the CPU time of one over that of the other."""
    times = [(cpu(one)[1], cpu(other)[1]) for _ in range(ROUNDS)]
    return min(time for time, _ in times) / min(time for _, time in times)


def usual(data: bytes, pts: tuple[int, ...]) -> np.ndarray:
    """Returns the tokens as most pipelines make them."""
    pending, frames_by_time = set(pts), {}
    with av.open(io.BytesIO(data)) as container:
        for frame in container.decode(one_thread(container)):
            if frame.pts in pending:
                pending.discard(frame.pts)
                frames_by_time[frame.pts] = baseline_frame(frame)
                if not pending:
                    break
    # H.264 in AVI has times that PyAV guesses wrongly; none is made here
    return patchify(np.stack([frames_by_time[time] for time in pts]), TUBELET)


def baseline_frame(frame: av.VideoFrame) -> np.ndarray:
    return np.asarray(frame.to_image().resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def ours(data: bytes, pts: tuple[int, ...], entries: tuple[int, ...]) -> np.ndarray:
    """Returns the tokens as `build` makes them."""
    return patchify(decode_clip(io.BytesIO(data), pts, SIDE, SIDE, entries)[0], TUBELET)


def some_frames(data: bytes) -> tuple[list[av.VideoFrame], bool]:
    """Returns up to four frames spread over the first 40, and whether their chroma lies on the left."""
    with av.open(io.BytesIO(data)) as container:
        stream = one_thread(container)
        frames = [frame for number, frame in zip(range(31), container.decode(stream), strict=False) if number % 10 == 0]
        return frames, stream.codec_context.name not in AMID


def faithfulness(frame: av.VideoFrame, left: bool) -> float:
    """Returns the least dB of a frame over several sizes."""
    colour, worst = colour_of(frame), np.inf
    for shrink in SHRINKS:
        height, width = round(frame.height / shrink), round(frame.width / shrink)
        reference = reference_pixels(frame, height, width, colour.matrix, colour.full_range, left)
        sideways = oriented_size(frame, None) != (frame.height, frame.width)
        got = Scaler(*((width, height) if sideways else (height, width))).pixels(frame)
        # the reference is as stored
        turned = [np.rot90(reference, turns) for turns in range(4)]
        worst = min(worst, max(psnr(got, one) for one in turned if one.shape == got.shape))
    return worst


def packets(data: bytes, decode: bool) -> None:
    """Goes over all packets, and decodes them or not."""
    with av.open(io.BytesIO(data)) as container:
        for packet in container.demux(one_thread(container)):
            if decode and packet.size:
                packet.decode()


def shared(data: bytes, header: VideoHeader) -> float:
    """Returns the gain of four clips that share a decode."""
    clips = [take_clip(header, ClipRule(4), number) for number in range(4)]
    target = [ClipTarget(clip.pts, SIDE, SIDE, clip.entries) for clip in clips]
    return ratio(
        lambda: [decode_clips(io.BytesIO(data), [one]) for one in target],
        lambda: decode_clips(io.BytesIO(data), target),
    )


def one_thread(container: av.container.InputContainer) -> av.VideoStream:
    stream = container.streams.best("video")
    stream.thread_type, stream.codec_context.thread_count = "NONE", 1
    return stream


if __name__ == "__main__":
    main()
