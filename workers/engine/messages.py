"""What a parent, its fork server and its ranks tell each other: typed messages as msgpack, never pickles."""

from __future__ import annotations

from multiprocessing.connection import Connection
from typing import Generic, TypeVar

import msgspec

from workers.backends.measures import Measures
from workers.backends.protocol import EngineRequest, Outcome, Progress
from workers.engine.options import EngineOptions


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Named by its class on the wire."""


# --- parent to fork server, and back


class Fork(Message, frozen=True, kw_only=True):
    """Fork a rank. With it come descriptors: of its pipe to the parent, and of its pipes to other ranks."""

    rank: int
    #: The only ones that it may run on; all of them if there are none.
    cores: tuple[int, ...]
    log_level: str
    log_format: str


class Serving(Message, frozen=True, kw_only=True):
    """Torch is imported: forks take milliseconds from now on."""


class Forked(Message, frozen=True, kw_only=True):
    """With it comes a descriptor of the process, a pidfd."""

    pid: int


class NotForked(Message, frozen=True, kw_only=True):
    """The system refused."""

    reason: str


class Ended(Message, frozen=True, kw_only=True):
    """A rank has ended, and its number may be another process's from now on."""

    pid: int
    #: Its exit status, or minus the signal that killed it.
    status: int


# --- parent to ranks


class Start(Message, frozen=True, kw_only=True):
    """First message to every rank."""

    options: EngineOptions
    #: Path of the file at which the ranks of this generation find each other.
    rendezvous: str
    #: Threads that the rank may compute with.
    num_threads: int
    #: Whether every thread of all ranks can have a core: then ranks do best to spin while they wait for each other.
    has_own_cores: bool


class Submit(Message, frozen=True, kw_only=True):
    request: EngineRequest


class Abort(Message, frozen=True, kw_only=True):
    ids: list[str]


class Shutdown(Message, frozen=True, kw_only=True):
    """Exit; what runs is lost."""


# --- ranks to parent


class Ready(Message, frozen=True, kw_only=True):
    """Loaded and warm; from rank 0 alone."""

    vocab_size: int
    #: Longest prompt + answer, in tokens.
    context_length: int
    num_kv_tokens: int
    #: How long a step of the whole token budget should take, from the time that a short prompt took.
    full_step_seconds: float
    #: Of the weights as they run: `bfloat16`.
    dtype: str


class Admitted(Message, frozen=True, kw_only=True):
    """These requests run from now on: from here a crash may be their doing."""

    ids: list[str]


class Progressed(Message, frozen=True, kw_only=True):
    """What running requests have come to, so that no more than a few tokens are lost with the ranks."""

    progress: list[Progress]


class Outcomes(Message, frozen=True, kw_only=True):
    outcomes: list[Outcome]


class Heartbeat(Message, frozen=True, kw_only=True):
    """After a step: at most ten per second, and always the last before the engine idles."""

    num_steps: int
    num_kv_tokens_used: int
    #: Since the last heartbeat.
    measures: Measures


class Failed(Message, frozen=True, kw_only=True):
    """The rank can't go on, and exits."""

    message: str
    #: Whether it merely saw another rank fail.
    is_consequence: bool = False


# --- rank 0 to the others, and back


class Capacity(Message, frozen=True, kw_only=True):
    """How many blocks of KV cache this rank has room for."""

    num_blocks: int


class Allocate(Message, frozen=True, kw_only=True):
    """How many blocks of KV cache every rank makes: the least of their capacities."""

    num_blocks: int


#: What a token is drawn by: the temperature, 0 where the likeliest is taken, and the two numbers of a `draw_key`.
Draw = tuple[float, int, int]


class Step(Message, frozen=True, kw_only=True):
    """One step of the model; every rank runs the same. Lists have one entry per sequence unless they say otherwise."""

    #: Flat: the sequences' tokens of this step, one sequence after another. A step that is started before anybody knows
    #: what the one before chose has ~row in place of what that chose in the row.
    token_ids: list[int]
    #: Tokens of this step.
    query_lengths: list[int]
    #: Tokens in the cache after this step.
    context_lengths: list[int]
    prompt_lengths: list[int]
    block_tables: list[list[int]]
    #: Whether the logits of the last token are wanted.
    samples: list[bool]
    #: Whether the likeliest token is all that is wanted of every row.
    is_plain: bool = False
    #: One per sequence where all decode and are decided by this alone. Empty if not, if the step is plain, and if the
    #: runner can't draw.
    draws: list[Draw] = []


FromForkServer = Serving | Forked | NotForked | Ended
ToRank = Start | Submit | Abort | Shutdown
FromRank = Ready | Admitted | Progressed | Outcomes | Heartbeat | Failed
ToFollower = Allocate | Step | Shutdown
FromFollower = Capacity

Incoming = TypeVar("Incoming")


def encode(message: Message) -> bytes:
    return msgspec.msgpack.encode(message)


class ChannelClosed(Exception):
    """The process at the other end of the pipe is gone."""


class Channel(Generic[Incoming]):
    """A duplex pipe to one process. One thread may send while another receives."""

    def __init__(self, connection: Connection, incoming: object) -> None:
        """`incoming` is the type, or the union of types, of the messages that come in."""
        self._connection = connection
        self._decoder: msgspec.msgpack.Decoder[Incoming] = msgspec.msgpack.Decoder(incoming)

    def send(self, message: Message) -> None:
        """Raises ChannelClosed."""
        self.send_encoded(encode(message))

    def send_encoded(self, message: bytes) -> None:
        try:
            self._connection.send_bytes(message)
        except OSError as error:
            raise ChannelClosed from error

    def receive(self) -> Incoming:
        """The next message, as soon as there is one. Raises ChannelClosed."""
        try:
            return self._decoder.decode(self._connection.recv_bytes())
        except (EOFError, OSError) as error:
            raise ChannelClosed from error

    def poll(self, timeout: float | None = 0.0) -> bool:
        """Whether `receive` returns at once, waiting up to `timeout` seconds (None: for ever) until it does."""
        try:
            return self._connection.poll(timeout)
        except OSError as error:
            raise ChannelClosed from error

    def fileno(self) -> int:
        return self._connection.fileno()

    def close(self) -> None:
        self._connection.close()
