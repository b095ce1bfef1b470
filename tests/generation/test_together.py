"""Answers that share their steps are, to the bit, those that each gives by itself."""

from contextlib import suppress

import numpy as np
import pytest

from llava_ref import load
from llava_ref.errors import NumericsError
from llava_ref.generation.answer import Turn
from llava_ref.generation.request import Step
from llava_ref.generation.reuse import Reuse
from llava_ref.generation.sampling import Sampling
from llava_ref.generation.session import Session, shared_steps
from llava_ref.generation.steps import SharedSteps
from llava_ref.generation.together import in_turn, together
from llava_ref.tracing.trace import Probe

from ..support.sharing import load_sharing
from ..support.tiny_pair import VICUNA, Tiny, write_pair

RGB = np.random.default_rng(0).integers(0, 256, (30, 47, 3), np.uint8)
ASKED = [  # prompt, pictures, settings, tokens
    ("the <image> is red", [RGB], {}, 14),
    ("blue", [], {"temperature": 1.0, "seed": 3}, 18),
    ("what is in the picture? " * 12, [], {}, 9),
    ("the <image> of one <image>", [RGB, RGB[:20]], {"temperature": 0.7, "seed": 4, "repeat_penalty": 1.3}, 11),
    ("two", [], {"temperature": 1.5, "seed": 5}, 1),
    ("red and blue and two", [], {}, 12),
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"), Tiny(template=VICUNA, context=1500))


def stream(model, asked):
    prompt, images, settings, n = asked
    sampling = Sampling(top_logprobs=3, logit_bias={2: -100.0}, **settings)
    return model.answer(model.raw_request(prompt, images), sampling, max_tokens=n)


def facts(steps):
    """Return every token with its log-probability and those of the likeliest."""
    return [(step.token_id, step.text, step.finish_reason, step.score) for step in steps]


@pytest.fixture(scope="module")
def alone(pair):
    """What each gives by itself, on a model that never shares a step."""
    model = load_sharing(*pair, together=1)
    assert model.together == 1
    return [facts(stream(model, asked).steps()) for asked in ASKED]


@pytest.fixture
def model(pair):
    return load_sharing(*pair, together=4)


def run(model, streams):
    found = [[] for _ in streams]
    for index, step in together(streams):
        found[index].append(step)
    return [facts(steps) for steps in found]


@pytest.mark.parametrize("most", [2, 3, 8])
def test_answers_that_share_steps_are_those_of_each_alone(pair, alone, most):
    model = load_sharing(*pair, together=most)
    assert run(model, [stream(model, asked) for asked in ASKED]) == alone
    shared = model.ops.shared
    assert max(shared) == min(most, 4) and sum(shared) == sum(len(steps) - 1 for steps in alone)
    assert sum(shared) / len(shared) > 0.6 * min(most, 4), "most steps are full"


@pytest.mark.parametrize("kind", ["Q8_0", "F16"])
def test_the_same_with_the_kernels_of_a_processor(tmp_path, kind, monkeypatch):
    """A program of eight rows, of five, of one: every token and log-probability is the one of each alone."""
    pytest.importorskip("llvmlite")
    files = write_pair(tmp_path, Tiny(template=VICUNA, context=1500, type=kind))
    model, shared = load(*files, precision="fast"), []
    step = model.ops.step_together
    monkeypatch.setattr(model.ops, "step_together", lambda s, t: (shared.append(len(s)), step(s, t))[1])
    asked = [*ASKED, *((prompt + " one", *rest) for prompt, *rest in ASKED)]
    wanted = [facts(stream(model, one).steps()) for one in asked]
    assert set(shared) == {1} and model.together == 8
    assert run(model, [stream(model, one) for one in asked]) == wanted
    assert max(shared) > 4
    model.reuse = Reuse(sequences=8)
    for _ in range(2):
        again = [stream(model, one) for one in asked]
        assert run(model, again) == wanted
    assert sum(one.clock.cached_tokens for one in again) > 50


def test_logits_are_those_of_each_alone(pair):
    """Sessions with other prompts and lengths, of which some take a token and some do not, in changing order."""
    shared, plain = (load_sharing(*pair, together=n) for n in (4, 1))
    prompts, rng = [[1, *range(5, 9 + 7 * i)] for i in range(4)], np.random.default_rng(1)
    sessions = [(shared.session(), plain.session()) for _ in prompts]
    for (one, other), prompt in zip(sessions, prompts, strict=True):
        np.testing.assert_array_equal(one.feed([prompt]), other.feed([prompt]))
    for _ in range(12):
        live = rng.permutation(4)[: rng.integers(1, 5)]
        tokens = {i: int(rng.integers(3, 300)) for i in live}
        for i in live:
            sessions[i][0].start([[tokens[i]]])
        for i in rng.permutation(live):
            np.testing.assert_array_equal(sessions[i][0].advance(), sessions[i][1].next([[tokens[i]]]))
    assert max(shared.ops.shared) == 4 and all(one.n_past == other.n_past for one, other in sessions)


def test_one_alone_runs_alone_and_one_that_waits_costs_nothing(model, alone):
    """Nobody waits for one that does not come back; its token is run once, with another's, and then no more."""
    idle, busy = stream(model, ASKED[5]).steps(), stream(model, ASKED[1])
    first = next(idle)
    assert facts(busy.steps()) == alone[1]
    assert model.ops.shared == [2, *[1] * 16]
    assert facts([first, *idle]) == alone[5]


def test_a_stream_that_is_closed_is_stepped_no_more(model, alone):
    gone, other = stream(model, ASKED[5]), stream(model, ASKED[0])
    steps, more = gone.steps(), other.steps()
    found = [next(more)]
    next(steps)
    gone.close()
    found += list(more)
    assert facts(found) == alone[0] and set(model.ops.shared) == {1}
    assert gone.reply.finish_reason is None


def started(model, count):
    """Return sessions that have run a prompt each and started a token."""
    sessions = [model.session() for _ in range(count)]
    for session in sessions:
        session.feed([[1, 5]])
        session.start([[7]])
    return sessions


def test_those_that_have_waited_longest_share_the_next_step(model):
    sessions = started(model, 9)
    sessions[-1].advance()
    assert [session.n_past for session in sessions] == [3, 3, 3, 2, 2, 2, 2, 2, 3]
    sessions[6].advance()
    assert [session.n_past for session in sessions] == [3, 3, 3, 3, 3, 3, 3, 2, 3]


@pytest.mark.parametrize("leave", [lambda s: s.stop(), lambda s: s.feed([[8]]), lambda s: s.rewind([[1, 5], [6]])])
def test_a_token_that_is_taken_back_is_not_run(model, leave):
    one, other = started(model, 2)
    leave(other)
    one.advance()
    assert model.ops.shared == [1]


def test_a_kept_sequence_of_a_closed_stream_is_stepped_no_more(model):
    model.reuse = Reuse(sequences=4)
    gone, other = stream(model, ASKED[5]), stream(model, ASKED[0])
    next(gone.steps())
    gone.close()
    other.finish()
    assert set(model.ops.shared) == {1} and len(model.reuse._kept) == 2


def test_a_token_that_another_step_has_run_is_not_run_again_for_a_probe(model, pair):
    one, other = started(model, 2)
    plain = load_sharing(*pair, together=1).session()
    plain.feed([[1, 5]])
    one.advance()
    with model.probed(Positions()) as probe:
        np.testing.assert_array_equal(other.advance(), plain.next([[7]]))
    assert other.n_past == 3 and not probe.seen and model.ops.shared == [2]


def test_a_session_that_is_forgotten_is_stepped_no_more(model):
    one, other = started(model, 2)
    del other
    one.advance()
    assert model.ops.shared == [1]


def test_what_was_started_and_never_taken_is_no_part_of_a_sequence(model, pair):
    one, other, plain = model.session(), model.session(), load_sharing(*pair, together=1).session()
    for session in (one, other, plain):
        session.feed([[1, 5, 9]])
    for session in (one, other):
        session.start([[7]])
    one.advance()  # the other's token has been run with it
    assert model.ops.shared == [2]
    np.testing.assert_array_equal(other.next([[8]]), plain.next([[8]]))
    assert other.n_past == plain.n_past == 4
    other.start([[8]])
    one.next([[8]])
    assert other.rewind([[1, 5, 9], [8], [4]]) == [[4]] and other.n_past == 4


class Positions(Probe):
    """Notes which positions were run while it was there."""

    def __init__(self):
        super().__init__(["embd"])
        self.seen = []

    def see(self, x, at):
        self.seen.append(list(at.positions))
        return x


def test_a_watched_token_is_run_alone_and_seen(model, alone):
    one, other = stream(model, ASKED[0]), stream(model, ASKED[5])
    found, steps = [[], []], [one.steps(), other.steps()]
    for i in (0, 1):
        found[i].append(next(steps[i]))  # both have asked for their second token
    with model.probed(Positions()) as probe:
        for i in (0, 1):
            found[i].append(next(steps[i]))
    ends = [len(stream.request.token_ids) for stream in (one, other)]
    assert probe.seen == [[end] for end in ends] and not model.ops.shared
    for i in (0, 1):
        found[i] += list(steps[i])
    assert [[step.token_id for step in steps] for steps in found] == [[f[0] for f in alone[i]] for i in (0, 5)]


def test_a_probe_that_need_not_see_everything_leaves_the_step_on(model):
    probe = Positions()
    probe.complete = False
    with model.probed(probe):
        stream(model, ASKED[5]).finish()
    assert len(model.ops.shared) == 11 and len(probe.seen) == 1, "the prompt's array"


def test_bad_logits_end_only_their_own_answer(model, alone, monkeypatch):
    """The second sequence's are not finite: the first runs the step, and goes on."""
    one, other = stream(model, ASKED[0]), stream(model, ASKED[5])
    step_together = model.ops.step_together

    def spoilt(steppers, tokens):
        found = step_together(steppers, tokens)
        for stepper, logits in zip(steppers, found, strict=True):
            logits[3] = np.nan if stepper.cache.length > 8 and stepper.cache in bad else logits[3]
        return found

    refused = []

    def refuse(session):
        refused.append(session)
        raise NumericsError("file", "tensor", "NaN")

    monkeypatch.setattr(model.ops, "step_together", spoilt)
    monkeypatch.setattr(Session, "_refuse", refuse)
    steps, more = one.steps(), other.steps()
    found, bad = [next(steps)], []
    next(more)
    bad += [stepper.cache for stepper in (seat.stepper for seat in model._steps._asked)][1:]
    found.append(next(steps))
    assert model.ops.shared == [2]
    with pytest.raises(NumericsError):
        next(more)
    assert facts([*found, *steps]) == alone[0] and len(refused) == 1


def test_a_step_that_fails_ends_only_the_answer_at_fault(model, alone, monkeypatch):
    """As when one cache cannot grow: those who share the step with it go on by themselves."""
    streams = [stream(model, ASKED[i]) for i in (0, 5, 1)]
    turns, found = [s.turns() for s in streams], [[], [], []]
    for i, one in enumerate(turns):
        while not found[i]:
            found[i] += [turn for turn in (next(one),) if isinstance(turn, Step)]
    broken = [seat.stepper for seat in model._steps._asked][1]
    step_together = model.ops.step_together

    def failing(steppers, tokens):
        if broken in steppers:
            raise MemoryError
        return step_together(steppers, tokens)

    monkeypatch.setattr(model.ops, "step_together", failing)
    monkeypatch.setattr(broken, "step", lambda token: failing([broken], [token]))
    ended = []
    while len(ended) < 3:
        for i, one in enumerate(turns):
            if i not in ended:
                try:
                    turn = next(one, None)
                except MemoryError:
                    turn = None
                    assert i == 1
                found[i] += [turn] if isinstance(turn, Step) else []
                ended += [i] if turn is None else []
    assert facts(found[0]) == alone[0] and facts(found[2]) == alone[1] and len(found[1]) == 1


def log(model, monkeypatch):
    """Note in order what runs: a stretch of a prompt by its rows, a step by what shared it."""
    ran, forward, step = [], Session._forward, SharedSteps._step

    def stretch(self, run):
        ran.append(f"{self.n_past}+{sum(map(len, run))}")
        return forward(self, run)

    def stepped(self, share):
        ran.append(len(share))
        step(self, share)

    monkeypatch.setattr(Session, "_forward", stretch)
    monkeypatch.setattr(SharedSteps, "_step", stepped)
    return ran


def test_between_two_stretches_of_a_prompt_the_others_get_a_token(model, alone, monkeypatch):
    """And a second prompt does not begin before the first has ended."""
    monkeypatch.setattr("llava_ref.generation.units.BATCH", 4)
    ran = log(model, monkeypatch)
    streams = [stream(model, (word * 30, [], {}, n)) for word, n in (("b", 40), ("r", 4), ("t", 3))]
    for _ in together(streams):
        pass
    (length,) = {len(s.request.token_ids) for s in streams}
    prompt = [f"{at}+{min(4, length - at)}" for at in range(0, length, 4)]
    assert len(prompt) > 4 and ran[: len(prompt)] == prompt, "the first has nobody to wait for"
    rest, ahead = ran[len(prompt) :], 2 * len(prompt)
    assert rest[1:ahead:2] == prompt and rest[0:ahead:2] == [1] * len(prompt)
    assert rest[ahead + 1 : 2 * ahead : 2] == prompt and set(rest[ahead : 2 * ahead : 2]) == {1, 2}


def test_pictures_and_stretches_are_turns_of_their_own(model):
    turns = list(stream(model, ASKED[3]).turns())
    assert turns[:3] == [Turn.PROMPT] * 3 and not any(isinstance(turn, Step) for turn in turns[:3])
    assert len([turn for turn in turns if isinstance(turn, Step)]) == 11


def test_in_turn():
    class Work:
        def __init__(self, at_prompt):
            self.at_prompt = at_prompt

    works = [Work(at_prompt) for at_prompt in (True, False, True, False)]
    assert in_turn(works) == [works[1], works[3], works[0]] and in_turn([]) == []


def test_what_is_kept_changes_no_bit_of_answers_run_at_once(pair, alone):
    """Twice the same questions and then longer ones, with kept sequences and rows."""
    model = load_sharing(*pair, together=4)
    model.reuse = Reuse(sequences=4)
    longer = [(prompt + " red", *rest) for prompt, *rest in ASKED]
    plain = load_sharing(*pair, together=1)
    wanted = [facts(stream(plain, asked).steps()) for asked in longer]
    assert run(model, [stream(model, asked) for asked in ASKED[:4]]) == alone[:4]
    again = [stream(model, asked) for asked in ASKED[:4]]
    assert run(model, again) == alone[:4]
    assert run(model, [stream(model, asked) for asked in longer]) == wanted
    assert max(model.ops.shared) == 4


def test_a_sequence_in_use_is_nobody_elses(model):
    """Two answers to the same prompt at once: the second does not go on in the first's keys and values."""
    model.reuse = Reuse(sequences=4)
    stream(model, ASKED[0]).finish()
    streams = [stream(model, ASKED[0]) for _ in range(3)]
    one, two, three = run(model, streams)
    assert one == two == three and len({id(session) for session in model.reuse._kept}) == 3
    assert [s.clock.cached_tokens for s in streams][0] > 16 == streams[1].clock.cached_tokens


@pytest.mark.parametrize("count", [1, 2, 4])
def test_sequences_kept_and_in_use_are_bounded(model, count):
    reuse = model.reuse = Reuse(sequences=count)
    for i in range(9):
        streams = [stream(model, (f"{'red ' * i}{j}", [], {}, 3)) for j in range(1 + i % count)]
        turns = [s.steps() for s in streams]
        for one in turns:
            next(one)
            assert reuse._n_used + len(reuse._kept) <= count
        for one in turns:
            with suppress(StopIteration):
                while True:
                    next(one)
        assert reuse._n_used == 0 and 1 <= len(reuse._kept) <= count


def test_sequences_beyond_the_bound_are_given_up_when_they_are_given_back(model):
    """There are more than the bound where answers are paused. The one given back last is kept."""
    reuse = Reuse(sequences=2)
    sessions = [model.session() for _ in range(4)]
    assert [reuse.take_session() for _ in sessions] == [None] * 4
    for session, kept in zip(sessions, ([0], [1], [2], [2, 3]), strict=True):
        reuse.give_back(session)
        assert reuse._kept == [sessions[i] for i in kept]


def test_the_sequence_with_the_longest_common_beginning_is_taken(model):
    reuse = Reuse(sequences=3)
    heads = {"a": [[1, 5], [6, 7]], "b": [[1, 5], [6, 8, 9]], "c": [[2, 4]]}
    kept = {}
    for name, parts in heads.items():
        kept[name] = reuse.take_session(parts) or model.session()
        kept[name].feed(parts)
    for session in kept.values():
        reuse.give_back(session)
    assert reuse.take_session([[1, 5], [6, 8, 9], [3]]) is kept["b"]
    assert reuse.take_session([[1, 5], [6, 7], [3]]) is kept["a"]
    reuse.give_back(kept["b"])
    reuse.give_back(kept["a"])
    assert reuse.take_session([[9, 9, 9]]) is kept["c"], "the one used longest ago, because there is no room"


def test_a_sequence_is_not_given_up_for_a_few_positions_while_there_is_room(model):
    reuse = Reuse(sequences=2)
    session = reuse.take_session([[1], [5] * 9]) or model.session()
    session.feed([[1], [5] * 9, [7]])
    reuse.give_back(session)
    assert reuse.take_session([[1], [6] * 9]) is None
    assert reuse.take_session([[1], [5] * 9, [8]]) is session


def test_a_sequence_without_a_stepper_shares_nothing(pair, monkeypatch):
    model = load_sharing(*pair)
    monkeypatch.setattr(model.ops, "stepper", lambda plan, cache: None)
    assert shared_steps(model.text) is None
    assert load_sharing(*pair).together == 4
