"""One end of a call: real RTP by GStreamer, in a process of its own inside a namespace.

    audiotestsrc ─▶ mulawenc ─▶ rtppcmupay ─▶ udpsink      what it says
                                                 │ one socket, as real phones have it
        fakesink ◀─ mulawdec ◀─ rtppcmudepay ◀─ udpsrc     what it hears

`python -m moh_ebpf.lab.endpoint ADDRESS CONTROL` says "ready" on stdout, then obeys requests on the
Unix socket CONTROL, one a connection (call.Phone is the other side):

    play PORT HERTZ HOST:PORT    say a tone from PORT to HOST:PORT, instead of what it said before;
                                 answers "ok" when the first packet leaves, else what went wrong
    listen                       answers with what it hears, as raw PCM, until one hangs up
"""

import contextlib
import signal
import socket
import sys
import threading
from typing import Any

from moh_ebpf.lab.audio import FRAME, SAMPLE_RATE

PACKAGES = "python3-gi gir1.2-gstreamer-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good"
PATIENCE = 5.0  # seconds for a first packet to leave; a busy machine needs a fraction of one

RTP = "application/x-rtp,media=audio,clock-rate=8000,encoding-name=PCMU,payload=0"
PCM = f"audio/x-raw,rate={SAMPLE_RATE},channels=1"
SPEAK = (
    f"audiotestsrc is-live=true samplesperbuffer={FRAME} volume=0.5 freq={{hertz}} ! {PCM}"
    " ! mulawenc ! rtppcmupay ! udpsink name=mouth sync=false async=false close-socket=false"
    " host={host} port={to_port}"
)
HEAR = (
    f"udpsrc name=ear address={{address}} port={{port}} caps={RTP} ! rtppcmudepay ! mulawdec"
    f" ! {PCM} ! fakesink name=sound sync=false async=false signal-handoffs=true"
)


class EndpointError(Exception):
    """GStreamer cannot do what was asked."""


def load_gstreamer() -> Any:
    """GStreamer's Python binding; imported here, for it is slow and not everyone has it."""
    try:
        import gi

        gi.require_version("Gst", "1.0")
        from gi.repository import Gst
    except (ImportError, ValueError) as error:
        raise EndpointError(f"{error}; try: apt install {PACKAGES}") from None
    Gst.init(None)
    return Gst


class Endpoint:
    """A phone, a music server or a voicemail: says one thing at a time, lets others listen in."""

    def __init__(self, address: str) -> None:
        self._gst = load_gstreamer()
        self._address = address
        self._pipeline: Any = None
        self._voice: tuple[int, int] | None = None
        self._listeners: list[socket.socket] = []

    def play(self, port: int, hertz: int, host: str, to_port: int) -> None:
        """Say a tone; from the same port, it is the same stream to another destination."""
        if self._pipeline and self._voice == (port, hertz):
            mouth = self._pipeline.get_by_name("mouth")
            mouth.set_property("host", host)
            mouth.set_property("port", to_port)
        else:
            self._stop()
            self._start(port, hertz, host, to_port)

    def listen(self, listener: socket.socket) -> None:
        """Send what is heard from now on to a listener, until it hangs up."""
        listener.setblocking(False)
        self._listeners.append(listener)

    def _start(self, port: int, hertz: int, host: str, to_port: int) -> None:
        gst = self._gst
        pipeline = self._parse(
            SPEAK.format(hertz=hertz, host=host, to_port=to_port)
            + " "
            + HEAR.format(address=self._address, port=port)
        )
        self._pipeline, self._voice = pipeline, (port, hertz)
        ear, mouth = pipeline.get_by_name("ear"), pipeline.get_by_name("mouth")
        pipeline.get_by_name("sound").connect("handoff", self._heard)
        spoken = threading.Event()
        mouth.get_static_pad("sink").add_probe(gst.PadProbeType.BUFFER, self._first_packet, spoken)
        # udpsrc first: udpsink, made ready without a socket, would open one of its own.
        self._set_state(ear, gst.State.READY)
        mouth.set_property("socket", ear.get_property("used-socket"))
        self._set_state(pipeline, gst.State.PLAYING)
        if not spoken.wait(PATIENCE):
            raise EndpointError(self._trouble() or f"no packet left within {PATIENCE:.0f} s")

    def _stop(self) -> None:
        if self._pipeline:
            self._pipeline.set_state(self._gst.State.NULL)
            self._pipeline = None

    def _parse(self, description: str) -> Any:
        try:
            return self._gst.parse_launch(description)
        except Exception as error:  # GLib.Error, which only gi can name
            raise EndpointError(f"GStreamer: {error}; try: apt install {PACKAGES}") from None

    def _set_state(self, element: Any, state: Any) -> None:
        if element.set_state(state) == self._gst.StateChangeReturn.FAILURE:
            trouble = self._trouble() or "a pipeline that does not start"
            self._stop()
            raise EndpointError(f"GStreamer: {trouble}")

    def _trouble(self) -> str:
        message = self._pipeline.get_bus().pop_filtered(self._gst.MessageType.ERROR)
        return " ".join(map(str, message.parse_error())) if message else ""

    def _first_packet(self, _pad: Any, _info: Any, spoken: threading.Event) -> Any:
        spoken.set()
        return self._gst.PadProbeReturn.REMOVE

    def _heard(self, _sound: Any, packet: Any, _pad: Any) -> None:
        pcm = packet.extract_dup(0, packet.get_size())
        for listener in self._listeners.copy():
            try:
                listener.sendall(pcm)
            except OSError:  # hung up, or does not read: no reason to hold up the call
                self._listeners.remove(listener)
                listener.close()


def serve(endpoint: Endpoint, server: socket.socket) -> None:
    """Obey, one request after the other, until killed."""
    while True:
        connection, _ = server.accept()
        with connection.makefile() as requests:
            verb, *arguments = requests.readline().split() or [""]
        if verb == "listen":
            endpoint.listen(connection)
            continue
        with connection, contextlib.suppress(OSError):  # who has hung up needs no answer
            connection.sendall(f"{_play(endpoint, arguments)}\n".encode())


def _play(endpoint: Endpoint, arguments: list[str]) -> str:
    try:
        port, hertz, destination = arguments
        host, to_port = destination.split(":")
        endpoint.play(int(port), int(hertz), host, int(to_port))
    except (EndpointError, ValueError) as error:
        return " ".join(str(error).split())
    return "ok"


def main() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # whoever starts us holds some (topology.py)
    address, control = sys.argv[1:]
    try:
        endpoint = Endpoint(address)
    except EndpointError as error:
        print(error, flush=True)
        sys.exit(1)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(control)
        server.listen()
        print("ready", flush=True)
        serve(endpoint, server)


if __name__ == "__main__":
    main()
