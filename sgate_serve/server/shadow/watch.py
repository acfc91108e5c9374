"""Records the answer of one engine request from its events."""

from dataclasses import replace
from time import perf_counter

from sgate_serve.engines.contract import Request, TokenEvent
from sgate_serve.server.shadow.agreement import FIRST_TOKENS, NUM_TOP, Answer


class Watch:
    """The answer to a request so far; its clock starts now.

    `request` is the one to run, which asks for log-probabilities that the client did not ask for.
    """

    def __init__(self, request: Request) -> None:
        self.request = replace(request, sampling=replace(request.sampling, logprobs=NUM_TOP))
        self.answer = Answer()
        self._start = perf_counter()

    def see(self, event: TokenEvent) -> TokenEvent:
        """Record an event; return it as the client's request would have it."""
        answer, now = self.answer, perf_counter() - self._start
        if event.token is not None:
            answer.tokens.append(event.token)
            if answer.first_token_seconds is None:
                answer.first_token_seconds = now
            answer.seconds = now
            if event.logprobs is not None and len(answer.first) < FIRST_TOKENS:
                answer.first.append(event.logprobs)
        answer.finish_reason = event.finish_reason
        return replace(event, logprobs=None)
