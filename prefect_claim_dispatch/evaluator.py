"""A child process that evaluates rules for as long as they may take, and is ended then, whatever they do.

The engine can't be interrupted: a rule of a hundred bytes over a large text may take half a minute of native code. What
its process may use of the processor, and how long it may live, is the kernel's to keep, also when its parent is gone.

Run as a script: ``python -I -S evaluator.py``. Standard input has a line of JSON with what is asked, a line with the
rules, and the context; standard output gets the answer, a list of JSON.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Sequence

CPU_SECONDS = 1
"""What the rules may use of the processor."""

SECONDS = 10.0
"""How long they may take altogether, on a machine that does other things, too."""

TOO_LONG = "they were not done in time, on this machine at this moment"


class EvaluatorEndedError(Exception):
    """It was ended without an answer; *is_by_rules* says that they used up their time, and not the machine."""

    def __init__(self, reason: str, *, is_by_rules: bool) -> None:
        super().__init__(reason)
        self.is_by_rules = is_by_rules


def evaluated_apart(rules: str, context: str, *, families: Sequence[str], operations: int) -> tuple[str | None, ...]:
    """What *rules* come to in *context*, as JSON text; or None, the kind of the engine's error, and its operator.

    Raises:
        EvaluatorEndedError: they were not done in time.
    """
    asked = {
        "path": sys.path,
        "families": list(families),
        "operations": operations,
        "cpu_seconds": CPU_SECONDS,
        "seconds": SECONDS,
    }
    try:
        done = subprocess.run(  # noqa: S603 - our own file, by our own interpreter
            [sys.executable, "-I", "-S", __file__],
            input="\n".join((json.dumps(asked), rules, context)),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            timeout=SECONDS + 1,
            start_new_session=True,  # Ctrl-C in a terminal is for the claim flow, which says what becomes of the row
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise EvaluatorEndedError(TOO_LONG, is_by_rules=False) from None
    if done.returncode == 0:
        return tuple(json.loads(done.stdout))
    if done.returncode == -signal.SIGXCPU:
        reason = f"they take more than {CPU_SECONDS} s of the processor"
        raise EvaluatorEndedError(reason, is_by_rules=True)
    is_late = done.returncode == -signal.SIGALRM
    reason = TOO_LONG if is_late else f"their process ended with status {done.returncode}"
    raise EvaluatorEndedError(reason, is_by_rules=False)


def answer(asked: str, rules: str, context: str) -> list[str | None]:
    """What *rules* come to in *context*, in this process, which may be ended on the way."""
    wanted = json.loads(asked)
    sys.path[:] = wanted["path"]
    from datalogic_py import DataLogicError, Engine  # noqa: PLC0415 - found only now, without `site`

    engine = Engine(config={"ops_budget": wanted["operations"]}, families=wanted["families"])
    limit_time(wanted["cpu_seconds"], wanted["seconds"])
    try:
        return [engine.compile(rules).evaluate_metered(context)[0]]
    except DataLogicError as error:
        return [None, getattr(error, "error_type", type(error).__name__), getattr(error, "operator", None)]


def limit_time(cpu_seconds: int, seconds: float) -> None:
    """Have this process ended by the kernel when its time is over; no handler of Python's would ever be called."""
    import resource  # noqa: PLC0415 - not on every system from which one may publish

    used = resource.getrusage(resource.RUSAGE_SELF)
    most = int(used.ru_utime + used.ru_stime) + cpu_seconds
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (most, most + 1))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)


if __name__ == "__main__":
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(encoding="utf-8")  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    sys.stdout.write(json.dumps(answer(*sys.stdin.read().split("\n", 2))))
