"""The shadow: a second model that answers a share of the requests too, unseen by the clients.

It runs a request after its client was served, and only while it has nothing else to do and nobody
waits for the served model, so that clients pay for at most one such request at a time.
"""

import asyncio
import logging
from dataclasses import replace
from functools import partial
from uuid import uuid4

from sgate_serve.engines.contract import Request
from sgate_serve.errors import RequestError, SgateError
from sgate_serve.server.driver import EngineDriver
from sgate_serve.server.execution.jobs import Job
from sgate_serve.server.served_model import ServedModel
from sgate_serve.server.shadow.agreement import Agreement, Answer
from sgate_serve.server.shadow.tally import ShadowTally
from sgate_serve.server.shadow.watch import Watch

logger = logging.getLogger(__name__)


class Shadow:
    """Compares a served model with that of `driver`, on a `share` of the requests."""

    def __init__(self, driver: EngineDriver, share: float) -> None:
        self.driver = driver
        self.tally = ShadowTally()
        self._share = share
        self._due = 0.0
        self._is_checked = False
        self._running: asyncio.Task[None] | None = None

    def load_error(self, served: EngineDriver) -> BaseException | None:
        """Return why the model could not be loaded, or not be compared with the served one."""
        ours, theirs = self.driver.loaded, served.loaded
        if self.driver.load_error is None and ours and theirs and not self._is_checked:
            try:
                check_same_tokens(theirs, ours)
            except SgateError as error:
                self.driver.load_error = error
            self._is_checked = True
        return self.driver.load_error

    def watch(self, job: Job, served: EngineDriver) -> "Watched | None":
        """Return a watch on the one request of a job that the shadow will run too, or None.

        Not those that ask for what a comparison would change: several choices, an answer that
        must follow a grammar, or log-probabilities.
        """
        if not self._is_due():
            return None
        request = job.requests[0]
        sampling = request.sampling
        asked = (sampling.logprobs, sampling.prompt_logprobs, sampling.grammar)
        if len(job.requests) > 1 or sampling.max_tokens < 1 or asked != (None, None, None):
            self.tally.count("unsuited")
            return None
        if not self._has_room(served) or not self._fits(request):
            self.tally.count("no_room")
            return None
        return Watched(request, self, served)

    def compare(self, watch: Watch, served: EngineDriver) -> None:
        """Run the request of an answer that has ended, in the background, if there is room now."""
        if not self._has_room(served):
            self.tally.count("no_room")
            return
        self._running = asyncio.get_running_loop().create_task(self._compare(watch))

    async def stop(self) -> None:
        """Stop the comparison that runs, and the engine."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
        await self.driver.stop()

    def report(self) -> None:
        """Log what was found."""
        if self.driver.loaded is not None:
            logger.info("%s", self.tally.summary(self.driver.loaded.name))

    async def _compare(self, watch: Watch) -> None:
        served, is_greedy = watch.answer, watch.request.sampling.temperature == 0
        try:
            reference = await self._answer(_repeated(watch.request, served))
            # The distance of long texts takes seconds.
            agreement = await asyncio.to_thread(
                partial(Agreement.of, served, reference, is_greedy=is_greedy)
            )
            self.tally.add(served, reference, agreement)
        except RequestError as error:
            logger.warning("the shadow did not answer: %s", error)
            self.tally.count("failed")
        except Exception:
            logger.exception("an answer could not be compared with the shadow's")
            self.tally.count("failed")

    async def _answer(self, request: Request) -> Answer:
        watch = Watch(request)
        group = self.driver.open([watch.request], None)
        try:
            async for event in group:
                watch.see(event)
        finally:
            group.close()
        return watch.answer

    def _is_due(self) -> bool:
        """Say whether this request belongs to the share, which is spread evenly."""
        self._due += self._share
        if self._due < 1:
            return False
        self._due -= 1
        return True

    def _is_ready(self) -> bool:
        return self.driver.state == "ready" and self._is_checked

    def _is_busy(self) -> bool:
        return self._running is not None and not self._running.done()

    def _has_room(self, served: EngineDriver) -> bool:
        return self._is_ready() and not self._is_busy() and not served.stats.num_waiting

    def _fits(self, request: Request) -> bool:
        limit = self.driver.model.engine.max_model_len
        return len(request.prompt) + request.sampling.max_tokens <= limit


class Watched(Watch):
    """A watch on a request to the `served` model, which the shadow runs once it has ended."""

    def __init__(self, request: Request, shadow: Shadow, served: EngineDriver) -> None:
        super().__init__(request)
        self._shadow, self._served = shadow, served

    def end(self) -> None:
        self._shadow.compare(self, self._served)

    def give_up(self) -> None:
        """Say that the client has left."""
        self._shadow.tally.count("aborted")


def check_same_tokens(served: ServedModel, shadow: ServedModel) -> None:
    """Raise SgateError unless the two models read the same tokens."""
    codecs = (served.codec, shadow.codec)
    same = served.engine.vocab_size == shadow.engine.vocab_size
    if same and None not in codecs:
        one, other = (codec.tokenizer.get_vocab() for codec in codecs if codec is not None)
        same = one == other
    if not same:
        raise SgateError(
            f"--shadow: {shadow.name} has other tokens than {served.name}; give the dense model "
            "that it was made from"
        )


def _repeated(request: Request, answer: Answer) -> Request:
    """Return the request again, for as many tokens as the answer has, and one to see it end."""
    room = len(answer.tokens) + (answer.finish_reason == "stop")
    sampling = replace(request.sampling, max_tokens=min(room, request.sampling.max_tokens))
    return Request(f"shadow-{uuid4().hex}", request.prompt, sampling)
