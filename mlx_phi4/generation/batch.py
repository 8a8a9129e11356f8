"""Steps over many rows at once: rows join, decode, cross into the long table, fail and leave, each by itself.

A step is flat: the next tokens of all rows, one after another, without padding. While the caller looks at a step's
tokens, the next step is under way on the device.
"""

import math
from time import perf_counter

import mlx.core as mx

from ..device import exclusive
from ..errors import Phi4Error
from ..model import Phi4
from .choices import Choice, Flight, last_tokens
from .drafting import waits
from .reading import read_row
from .scheduler import Part, Scheduler
from .sequence import Sequence, SequenceToken
from .step_costs import StepCosts

CLEARED = 256  # steps after which freed buffers, of shapes that will not come again, go back to the system


class Batch:
    """Rows on their way through one model; any thread may drive it, one at a time.

    ``admit`` a sequence at any time, call ``step`` while there are rows, ``retire`` one that is not wanted any more.

    Args:
        token_budget: prompt tokens that go into one step beside the decoding rows' own; None is the largest
            ``prefill_step_size`` among the rows that wait.
        media_slices: slices of pictures (a few views) and recordings (40 s) that are encoded in one step, so that
            decoding rows wait no longer; None is those of one row, or all of them while no row decodes.
    """

    def __init__(self, model: Phi4, token_budget: int | None = None, media_slices: int | None = None):
        for name, value in (("token_budget", token_budget), ("media_slices", media_slices)):
            if value is not None and value < 1:
                raise Phi4Error(f"{name} is {value}, expected at least 1")
        self.model = model
        self.steps = 0  # that were submitted
        self.prompt_tokens = 0  # that went through the decoder
        self._fixed_budget, self._media_slices = token_budget, media_slices
        self._scheduler = Scheduler(token_budget or 0)
        self._costs = StepCosts.of(model)
        self._flight: Flight | None = None
        self._failed: list[SequenceToken] = []
        self._closed = False

    @property
    def sequences(self) -> list[Sequence]:
        """The rows that have not ended."""
        return self._scheduler.sequences

    @property
    def active(self) -> bool:
        """Whether a ``step`` has anything to do."""
        return bool(self._failed or self._scheduler.decoding or self._scheduler.waiting)

    def admit(self, sequence: Sequence, *siblings: Sequence) -> None:
        """Take a row in; it joins the next step. ``siblings`` are further answers to the same prompt, prefilled once.

        Raises:
            Phi4Error: the row asks for what this model cannot do, or the batch is closed. No other row notices.
        """
        if self._closed:
            raise Phi4Error("this batch is closed; rows can no longer be admitted")
        for each in siblings:
            if each.row is not sequence.row or (each.options.kv, each.options.rope) != (
                sequence.options.kv,
                sequence.options.rope,
            ):
                raise Phi4Error("siblings answer the same row with the same cache options")
        if siblings and any(each.tokens for each in (sequence, *siblings)):
            raise Phi4Error("an answer that has begun has no siblings")
        with exclusive():
            for each in (sequence, *siblings):
                each.check(self.model)
            for each in (sequence, *siblings):
                each.begin(self.model, prefill=each is sequence)
        sequence.siblings = list(siblings)
        self._scheduler.waiting.append(sequence)
        if self._fixed_budget is None:
            self._scheduler.token_budget = max(each.options.prefill_step_size for each in self._scheduler.waiting)

    def retire(self, sequence: Sequence) -> None:
        """End a row: it takes no part in another step. Its state goes back to its prompt cache."""
        self._scheduler.drop(sequence)
        sequence.finish_reason = sequence.finish_reason or "cancelled"
        with exclusive():
            sequence.leave()
        self._rest()

    def preempt(self, sequence: Sequence) -> None:
        """Take a row out and let its memory go. Admitted again later it is computed again: its answer is the same."""
        self._scheduler.drop(sequence)
        sequence.put_off()
        self._rest()

    def close(self) -> None:
        """End all rows and take no more."""
        self._closed = True
        for sequence in self.sequences:
            self.retire(sequence)
        self._flight = None

    def step(self) -> list[SequenceToken]:
        """Compute, and return the new tokens of the rows that got one; none while prompts alone are taken in.

        A row whose medium, sampler or constraint fails ends with an error, alone. What breaks the step itself is
        raised, ends all rows and closes the batch: their caches may differ from layer to layer.
        """
        try:
            with exclusive():
                return self._step()
        except BaseException:
            for sequence in self.sequences:
                sequence.state, sequence.siblings = None, []
                sequence.finish_reason = sequence.finish_reason or "cancelled"
            self.close()
            raise

    def _rest(self) -> None:
        """With nobody left, the step on its way is of no use, and holds keys and values of rows that are gone."""
        if not self._scheduler.decoding and not self._scheduler.waiting:
            self._flight = None

    def _step(self) -> list[SequenceToken]:
        began, ahead, self._costs.spent = perf_counter(), self._flight is not None, 0.0
        flight = self._flight or self._forward()
        if flight is not None and not flight.submitted:
            flight.choose()
        self._flight = None
        # what follows a draft is known once it was read, and so is a draft that follows this step's tokens
        if flight is not None and not flight.drafted and not waits(self._scheduler.decoding, self._costs):
            self._flight = self._forward()
        following = self._flight
        constrained = following is not None and any(c.sequence.constraint for c in following.choices)
        if constrained:  # the device computes while this thread finds out which tokens may come
            mx.async_eval(following.logits)
        elif following is not None:
            following.choose()
        tokens, self._failed = self._failed, []
        if flight is not None:
            tokens += self._collect(flight)
            self._measure(flight, ahead, perf_counter() - began)
        if constrained:
            following.choose()
        if self.steps % CLEARED == 0:
            mx.clear_cache()
        self._rest()
        return tokens

    def _measure(self, flight: Flight, ahead: bool, seconds: float) -> None:
        """Note what a step took that was like others of its kind: one ahead of the next, or one with drafts."""
        steps = [flight] if self._flight is None else [flight, self._flight]
        if self._scheduler.waiting or any(part.prompt for step in steps for part in step.parts):
            return
        if (flight.drafted and not ahead) or (ahead and self._flight is not None):
            self._costs.note(len(flight.parts), flight.drafted, seconds - self._costs.spent)

    def _forward(self) -> Flight | None:
        """Submit the next step as far as its logits."""
        self._encode()
        parts, embedded = [], []
        for part in self._scheduler.plan(self.model):
            if part.error is not None:
                self._fail(part.sequence, part.error)
                continue
            try:
                embedded.append(part.sequence.embed_piece(self.model, part.run.count) if part.prompt else None)
            except Exception as error:
                self._fail(part.sequence, error)
                continue
            parts.append(part)
        if not parts:
            return None
        self.steps += 1
        self.prompt_tokens += sum(part.run.count for part in parts if part.prompt)
        h = self._embed(parts, embedded)
        logits = self.model.forward(h, [part.run for part in parts])
        choices, row = [], 0
        for part in parts:
            sequence = part.sequence
            sequence.quantize_if_due()
            if part.prompt and part.run.asked:
                choices += self._end_of_prompt(sequence, row)
            elif not part.prompt:
                numbered = enumerate([*part.draft, None])
                choices += [Choice(sequence, row + i, sequence.chosen + i, token) for i, token in numbered]
                sequence.chosen += 1
            row += part.run.asked
        return Flight(parts, None if logits is None else logits[0], choices)

    def _encode(self) -> None:
        """Some of the work on media, one after another."""
        left = self._media_slices or math.inf
        waiting = [sequence for sequence in self._scheduler.waiting if sequence.unencoded is not None]
        if self._media_slices is None and self._scheduler.decoding:
            waiting = waiting[:1]
        for sequence in waiting:
            try:
                while left > 0 and sequence.unencoded is not None:
                    sequence.encode_slice(self.model)
                    left -= 1
            except Exception as error:  # a medium that cannot be encoded is this row's own affair
                self._fail(sequence, error)

    def _end_of_prompt(self, sequence: Sequence, row: int) -> list[Choice]:
        """A prompt is in: the row decodes from now on, and so do its siblings."""
        self._scheduler.waiting.remove(sequence)
        members = [sequence, *sequence.siblings]
        for sibling in sequence.siblings:
            sequence.fork_into(sibling)
        sequence.siblings = []
        for member in members:
            member.prefilled()
            member.chosen += 1
            self._scheduler.decoding.append(member)
        return [Choice(member, row, member.chosen - 1) for member in members]

    def _embed(self, parts: list[Part], embedded: list[mx.array | None]) -> mx.array:
        """(1, T, D): tokens that were just chosen are taken from the device, where they are."""
        pieces: list[mx.array] = []
        start = 0
        while start < len(parts):
            if embedded[start] is not None:
                pieces.append(embedded[start])
                start += 1
                continue
            stop = next((i for i in range(start, len(parts)) if embedded[i] is not None), len(parts))
            pieces.append(self.model.model.embed_tokens(last_tokens(parts[start:stop]))[None])
            start = stop
        return pieces[0] if len(pieces) == 1 else mx.concatenate(pieces, axis=1)

    def _collect(self, flight: Flight) -> list[SequenceToken]:
        """Read a step's tokens from the device."""
        values = [] if flight.sampled is None else flight.sampled.tokens.tolist()
        found = [token for part in flight.parts if part.prompt for token in self._taken_in(part, bool(values))]
        by_row: dict[Sequence, list[int]] = {}
        for index, choice in enumerate(flight.choices):
            if choice.wanted:
                by_row.setdefault(choice.sequence, []).append(index)
        for sequence, indices in by_row.items():
            found += read_row(sequence, indices, values, flight)
            if sequence.finish_reason == "error":
                self._scheduler.drop(sequence)
            elif sequence.finish_reason:
                self.retire(sequence)
        return found

    def _taken_in(self, part: Part, read: bool) -> list[SequenceToken]:
        """A piece of a prompt is in: wait for it where no token was read, lest pieces pile up, and tell who asked."""
        sequence = part.sequence
        if sequence.state is None:
            return []
        if not read:
            mx.eval(sequence.state.arrays())
        if sequence.options.progress is None or sequence.tokens:
            return []
        try:
            sequence.options.progress(part.done - sequence.reused, len(sequence.row.ids) - sequence.reused)
        except Exception as error:  # the row's own
            self._scheduler.drop(sequence)
            return [sequence.fail(error)]
        return []

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        for each in (sequence, *sequence.siblings):
            self._failed.append(each.fail(error))
        sequence.siblings = []
        self._scheduler.drop(sequence)
