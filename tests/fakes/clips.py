"""Small videos for the tests, and a camera's RTSP server."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

SIZE = (64, 48)
TURNED = {90: (0, 65536, 0, -65536, 0, 0), 180: (-65536, 0, 0, 0, -65536, 0)}
"""What a phone writes into a video that is to be shown turned clockwise."""


def write_clip(
    path: Path, frames: Sequence[np.ndarray] | int, codec: str = "libx264", **options: str
) -> Path:
    """Write frames, uint8 RGB [H, W, 3], at 25 a second; a number: dark ones, a bright corner."""
    import av

    if isinstance(frames, int):
        dark = np.full((SIZE[1], SIZE[0], 3), 20, np.uint8)
        dark[:16, :16] = 230
        rng = np.random.default_rng(0)  # noise, so that most of the file is frames
        frames = [dark + rng.integers(0, 20, dark.shape, np.uint8) for _ in range(frames)]
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode(None))
    return path


def turn(clip: Path, degrees: int) -> Path:
    """Write a copy of an MP4 whose header says to turn it."""
    data = bytearray(clip.read_bytes())
    upright = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 0x40000000)
    at = data.index(upright, data.index(b"tkhd"))
    a, b, u, c, d, v = TURNED[degrees]
    data[at : at + 36] = struct.pack(">9i", a, b, u, c, d, v, 0, 0, 0x40000000)
    turned = clip.with_name(f"turned-{degrees}.mp4")
    turned.write_bytes(data)
    return turned


class RtspServer:
    """Plays a video to one client, then hangs up, as a camera that loses its power does."""

    def __init__(self, clip: Path) -> None:
        import av

        with av.open(str(clip)) as container:  # MPEG-4 goes into RTP as it is, a packet a frame
            self._config = bytes(container.streams.video[0].codec_context.extradata or b"").hex()
            packets = [bytes(packet) for packet in container.demux(video=0)]
        self._frames = [packet for packet in packets if packet]
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"rtsp://127.0.0.1:{self._socket.getsockname()[1]}/live"
        self.asked: list[str] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def _serve(self) -> None:
        client, _ = self._socket.accept()
        with client, client.makefile("rwb") as talk:
            while True:
                head: dict[str, str] = {}
                request = talk.readline().decode().strip()
                if not request:
                    return
                while line := talk.readline().decode().strip():
                    name, _, value = line.partition(":")
                    head[name.lower()] = value.strip()
                method = request.split()[0]
                self.asked.append(f"{method} {head.get('transport', '')}".strip())
                body, more = "", ""
                if method == "DESCRIBE":
                    body = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nt=0 0\r\n"
                    body += "m=video 0 RTP/AVP 96\r\na=rtpmap:96 MP4V-ES/90000\r\n"
                    body += f"a=fmtp:96 config={self._config}\r\n"
                    more = "Content-Type: application/sdp\r\n"
                elif method == "SETUP":
                    more = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n"
                talk.write(
                    f"RTSP/1.0 200 OK\r\nCSeq: {head['cseq']}\r\n{more}"
                    f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
                )
                talk.flush()
                if method == "PLAY":
                    for number, frame in enumerate(self._frames):
                        packet = struct.pack(">BBHII", 0x80, 128 + 96, number, number * 3600, 1)
                        packet += frame
                        talk.write(b"$\0" + struct.pack(">H", len(packet)) + packet)
                    talk.flush()
                    return
