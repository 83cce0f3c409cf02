"""Code that is hard to stop, for the table in end_to_end/test_torture.py.  Each leaves a file when it is under way.

The file holds the pids of what has to be gone afterwards.
"""

import os
import queue
import re
import select
import signal
import subprocess
import sys
import threading
import time
import weakref

from tests.work import leave_a_daemon


def started(path, *pids):
    with open(path + ".new", "w") as file:
        file.write(" ".join(map(str, (os.getpid(),) + pids)))
    os.rename(path + ".new", path)


def started_when(path, is_so):
    """Leave the file as soon as *is_so* of what /proc says of this process: a cancel that came before would find
    it in the middle of Python code.  The rest of the line (see proc(5)) follows the state.
    """
    pid = os.getpid()
    if os.fork():
        return
    while True:
        with open("/proc/%d/stat" % pid) as file:
            name, _, fields = file.read().rpartition(")")
        if is_so(name, fields.split()):
            started(path, pid)
            os._exit(0)
        time.sleep(0.01)


def sleep(path):
    started(path)
    time.sleep(3600)


def busy_loop(path):
    started(path)
    while True:
        pass


def gil_held_in_c(path):
    before = os.times()
    used = (before.user + before.system) * os.sysconf("SC_CLK_TCK")
    started_when(path, lambda name, fields: int(fields[11]) + int(fields[12]) > used + 10)  # ticks, 0.1 s
    sum(range(10**13))


def regular_expression(path):
    started(path)
    re.match("(a+)+$", "a" * 60 + "b")


def subprocess_with_grandchildren(path):
    child = subprocess.Popen(
        ["sh", "-c", "sleep 3600 & sleep 3600 & echo $!; wait"], stdout=subprocess.PIPE, universal_newlines=True
    )
    started(path, child.pid, int(child.stdout.readline()))
    child.wait()


def child_under_timeout(path):
    child = subprocess.Popen(["timeout", "3600", "sh", "-c", "echo $$; exec sleep 3600"], stdout=subprocess.PIPE)
    started(path, child.pid, int(child.stdout.readline()))
    child.wait()


def child_under_job_control(path):
    child = subprocess.Popen(["bash", "-c", "set -m; sleep 3600 & echo $!; wait"], stdout=subprocess.PIPE)
    started(path, child.pid, int(child.stdout.readline()))
    child.wait()


def child_in_a_new_session(path):
    child = subprocess.Popen(["sleep", "3600"], start_new_session=True)
    started(path, child.pid)
    time.sleep(3600)


def orphan_in_a_new_session(path):
    script = (
        "import os, subprocess; nothing = open(os.devnull, 'w');"
        "print(subprocess.Popen(['sleep', '3600'], start_new_session=True, stdout=nothing).pid)"
    )
    pid = int(subprocess.check_output([sys.executable, "-c", script]))
    started(path, pid)
    time.sleep(3600)


def forked_child_in_a_new_session(path):
    pid = os.fork()
    if not pid:
        os.setsid()
        time.sleep(3600)
        os._exit(0)
    started(path, pid)
    time.sleep(3600)


def daemon(path):
    """One as the books have it: forked twice, in a session of its own, and no program is executed."""
    started(path, leave_a_daemon())
    time.sleep(3600)


def subprocess_run(path):
    started(path)
    subprocess.run(["sleep", "3600"])


def runs_trio(path):
    import trio

    started(path)
    trio.run(trio.sleep, 3600)


def runs_asyncio(path):
    import asyncio

    loop = asyncio.new_event_loop()
    started_when(path, lambda name, fields: fields[0] == "S")  # what is raised in its callbacks is only logged
    loop.run_until_complete(asyncio.sleep(3600))


class Fragile:
    def __del__(self):
        for _ in range(100):
            pass


def full_of_del(path):
    started(path)
    while True:
        Fragile()


class Blocking:
    def __del__(self):
        time.sleep(3600)


def started_when_blocked(path):
    """A cancel that came before would be on its way out of a frame whose finalisers block then."""
    started_when(path, lambda name, fields: fields[0] == "S")


def blocked_in_del(path):
    started_when_blocked(path)
    while True:
        Blocking()


def blocked_in_del_and_signalled_again(path):
    """The signal that is sent again comes just when the cancel that was swallowed is about to be raised again."""
    settrace = sys.settrace

    def settrace_and_signal(function):
        settrace(function)
        if function is not None:
            os.kill(os.getpid(), signal.SIGURG)

    sys.settrace = settrace_and_signal
    blocked_in_del(path)


def full_of_blocking_del(path):
    things = [Blocking() for _ in range(3)]
    started_when_blocked(path)
    things.clear()  # one after the other, with nothing of ours between them
    time.sleep(3600)


def blocked_in_a_weak_reference(path):
    started_when_blocked(path)
    while True:
        thing = Fragile()
        reference = weakref.ref(thing, lambda reference: time.sleep(3600))
        del thing, reference


def replaced_by_another_program(path):
    started_when(path, lambda name, fields: name.endswith("(sleep"))
    os.execvp("sleep", ["sleep", "3600"])


def swallows_every_base_exception(path):
    while True:
        try:
            if not os.path.exists(path):
                started(path)
            time.sleep(3600)
        except BaseException:
            pass


def ignores_signals(path):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGURG):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))
    started(path)
    time.sleep(3600)


def cleans_up_in_time(path):
    try:
        started(path)
        time.sleep(3600)
    finally:
        time.sleep(0.05)


def cleans_up_for_too_long(path):
    try:
        started(path)
        time.sleep(3600)
    finally:
        time.sleep(3600)


def blocked_in_a_full_pipe(path):
    read, write = os.pipe()
    started(path)
    while True:
        os.write(write, bytes(65536))


def blocked_on_a_lock(path):
    lock = threading.Lock()
    lock.acquire()
    started(path)
    lock.acquire()


def blocked_on_a_queue(path):
    started(path)
    queue.Queue().get()


def in_a_native_thread(path):
    thread = threading.Thread(target=time.sleep, args=(3600,))
    thread.start()
    started(path)
    thread.join()


def in_select(path):
    read, write = os.pipe()
    started(path)
    select.select([read], [], [])


def reading_a_fifo(path):
    os.mkfifo(path + ".fifo")
    started(path)
    open(path + ".fifo").read()


def holding_a_gigabyte(path):
    block = bytearray(1 << 30)
    started(path)
    time.sleep(3600)
    return len(block)


def printing_without_end(path):
    started(path)
    while True:
        print("x" * 1000)


def stopped(path):
    started_when(path, lambda name, fields: fields[0] == "T")
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(3600)


def child_under_sudo(path):
    command = ["sudo", "-n", "sh", "-c", "echo $$; exec sleep 3600"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    started(path, child.pid, int(child.stdout.readline()))
    child.wait()


# What to run, and how it may end.
CANCELLED, KILLED = "cancelled", "killed"
TABLE = {
    sleep: CANCELLED,
    busy_loop: CANCELLED,
    gil_held_in_c: KILLED,
    regular_expression: CANCELLED,
    subprocess_with_grandchildren: CANCELLED,
    child_under_timeout: CANCELLED,
    child_under_job_control: CANCELLED,
    child_in_a_new_session: CANCELLED,
    orphan_in_a_new_session: CANCELLED,
    forked_child_in_a_new_session: CANCELLED,
    daemon: CANCELLED,
    subprocess_run: CANCELLED,
    runs_trio: CANCELLED,
    runs_asyncio: CANCELLED,
    full_of_del: CANCELLED,
    blocked_in_del: CANCELLED,
    blocked_in_del_and_signalled_again: CANCELLED,
    full_of_blocking_del: CANCELLED,
    blocked_in_a_weak_reference: CANCELLED,
    replaced_by_another_program: KILLED,
    swallows_every_base_exception: KILLED,
    ignores_signals: KILLED,
    cleans_up_in_time: CANCELLED,
    cleans_up_for_too_long: KILLED,
    blocked_in_a_full_pipe: CANCELLED,
    blocked_on_a_lock: CANCELLED,
    blocked_on_a_queue: CANCELLED,
    in_a_native_thread: CANCELLED,
    in_select: CANCELLED,
    reading_a_fifo: CANCELLED,
    holding_a_gigabyte: CANCELLED,
    printing_without_end: CANCELLED,
    stopped: KILLED,
}
