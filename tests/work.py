"""What tests run over there: ordinary functions that need nothing but an old Python and its library."""

import _thread
import dis
import os
import signal
import subprocess
import sys
import threading
import time


def add(a, b=0):
    return a + b


def echo(*args, **kwargs):
    return args, kwargs


def pid():
    return os.getpid()


def shout(lines, width=10):
    for number in range(lines):
        print("%d %s" % (number, "x" * width))
    sys.stderr.write("done\nand no newline")


def print_and_hang(text):
    print(text, flush=True)
    time.sleep(3600)


def print_and_return(text, value):
    print(text, flush=True)
    return value


def write_at_every_level(text):
    print(text + " print")
    os.write(1, (text + " write\n").encode())
    os.system("echo %s child" % text)
    subprocess.check_call(["sh", "-c", "echo %s grandchild >&2" % text])


def say_and_run(path, seconds=3600):
    """Leave our pid in a file, so that the test knows that we run, then sleep."""
    write_file(path, str(os.getpid()))
    time.sleep(seconds)


def say_and_flow(*args):
    """The same for something in which things flow, of which none comes."""
    say_and_run(args[-1])
    return iter(())


def write_file(path, text):
    with open(path + ".new", "w") as file:
        file.write(text)
    os.rename(path + ".new", path)


def write_file_of_host(folder):
    """An empty file with the name of the host, which is also returned."""
    from trickle import remote

    write_file(os.path.join(folder, remote.host_name), "")
    return remote.host_name


def append(path, text):
    with open(path, "a") as file:
        file.write(text)


def append_and_wait(path, started):
    append(path, "ran\n")
    say_and_run(started)


def append_and_kill_the_agent(path):
    append(path, "ran\n")
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)


def keep_to_oneself(what, argument, path=None):
    """Do something that an argument has nothing to do with."""
    if what == "raise":
        raise LookupError("of no importance")
    if what == "end the broker":
        end_the_broker()
    if path is not None:
        write_file(path, str(os.getpid()))
        while os.path.exists(path):
            time.sleep(0.01)
    text = "-".join(["canary", "result", "6f1e9a"])
    return [text, Thing()] if what == "a thing" else text


def fail(kind="ValueError", *args):
    raise getattr(__builtins__, kind)(*args) if not isinstance(__builtins__, dict) else __builtins__[kind](*args)


def fail_with_cause():
    try:
        {}["missing"]
    except KeyError as exc:
        raise RuntimeError("no such thing") from exc


class OwnError(FileNotFoundError):
    pass


def fail_in_own_way():
    raise OwnError(2, "gone", "/nowhere")


def exit_at_once(status):
    os._exit(status)


def exit_politely(status):
    sys.exit(status)


def kill_self(number=signal.SIGKILL):
    os.kill(os.getpid(), number)
    time.sleep(60)


class Thing:
    pass


def give_thing():
    return Thing()


def give_lock():
    return threading.Lock()


def size_of(data):
    return len(data)


def give_bytes(count):
    return b"x" * count


def give_list(count):
    return list(range(count))


_count = 0


def count_calls():
    global _count
    _count += 1
    return _count


def clean_up_then(path, seconds=0.0):
    """On cancellation leave a file, after so many seconds of cleaning up."""
    try:
        write_file(path + ".started", str(os.getpid()))
        time.sleep(3600)
    finally:
        time.sleep(seconds)
        write_file(path, "clean")


def return_anyway(path):
    """Swallow the cancellation, and return."""
    try:
        write_file(path, str(os.getpid()))
        time.sleep(3600)
    except BaseException:
        return "came anyway"


def raise_otherwise(path):
    try:
        write_file(path, str(os.getpid()))
        time.sleep(3600)
    finally:
        raise LookupError("while cleaning up")


def refuse_to_stop(path):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        try:
            if not os.path.exists(path):
                write_file(path, str(os.getpid()))
            time.sleep(3600)
        except BaseException:
            pass


def start_children(path):
    """Children in our group, in a group and a session of their own; leave all pids in a file."""
    children = [
        subprocess.Popen(["sleep", "3600"]),
        subprocess.Popen(["timeout", "3600", "sleep", "3600"]),
        subprocess.Popen(["sleep", "3600"], start_new_session=True),
        subprocess.Popen(["sh", "-c", "sleep 3600 & wait"], start_new_session=True),
    ]
    write_file(path, " ".join(str(child.pid) for child in [*children]))
    time.sleep(3600)


def fork_and_both_return():
    if os.fork() == 0:
        return "child"
    return "parent"


def fork_and_exit(status):
    pid = os.fork()
    if not pid:
        sys.exit(status)
    return os.waitpid(pid, 0)[1] >> 8


def print_unicode():
    print("grüße \u2713")
    return sys.stdout.encoding


def environment(name):
    return os.environ.get(name)


def environment_in_bytes(name):
    return os.environb.get(name.encode())


def directory():
    return os.getcwd()


def sys_path():
    return list(sys.path)


def end_the_broker():
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(60)


def use_a_stand_in():
    import trickle
    import trickle.testing
    from trickle.abc import Tunnel

    class Named:
        host: "trickle.Host"
        tunnel: Tunnel

    class Own(Tunnel):
        pass

    tunnel = trickle.SSH("web1")
    try:
        raise ValueError
    except (trickle.HostLost, ValueError):
        return tunnel.name


def import_asyncio():
    import asyncio

    return asyncio.__name__


def raise_call_cancelled():
    from trickle import remote

    raise remote.CallCancelled("by itself")


class Unspeakable(Exception):
    def __getattr__(self, name):
        raise SystemExit

    @property
    def args(self):
        raise ZeroDivisionError


def raise_unspeakable():
    raise Unspeakable


def sleep_and_say(seconds):
    time.sleep(seconds)
    return "slept"


def spoil_descriptors(data):
    for fd in range(3, 50):
        try:
            os.write(fd, data)
        except OSError:
            pass
    time.sleep(60)


def import_in_fork_and_here():
    import importlib

    pid = os.fork()
    if not pid:
        try:
            importlib.import_module("tests.torture")
        except ImportError:
            os._exit(7)
        os._exit(0)
    status = os.waitpid(pid, 0)[1] >> 8
    return status, importlib.import_module("tests.torture").__name__


def keep_reason(path):
    from trickle import remote

    try:
        write_file(path + ".started", "x")
        time.sleep(3600)
    except remote.CallCancelled as exc:
        write_file(path, str(exc.reason))
        raise


def check_in_thread(path):
    from trickle import remote

    def loop():
        try:
            while True:
                time.sleep(0.01)
                remote.check_cancelled()
        except BaseException as exc:
            write_file(path, type(exc).__name__)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        write_file(path + ".started", "x")
        time.sleep(3600)
    finally:
        thread.join()


def import_by_name(name):
    import importlib

    return importlib.import_module(name).__name__


def value_in(module, name):
    import importlib

    return getattr(importlib.import_module(module), name)


def fault():
    import ctypes

    ctypes.string_at(0)


def exhaust_memory():
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, resource.RLIM_INFINITY))
    return len([bytearray(1 << 28) for _ in range(100)])


def limit_memory(spare):
    """Let this process have so many bytes more than it has now."""
    import resource

    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + spare, resource.RLIM_INFINITY))
    return os.getpid()


def lose_the_environment():
    os.environ = None  # noqa: B003


def block_all_signals():
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, signal.NSIG))
    return os.getpid()


def interrupt_when_idle(way, path):
    """Have something raised in the worker while it waits for its next call; then leave the file."""

    def interrupt():
        while not waits_for_the_next_call():
            time.sleep(0.005)
        if way == "signal":
            os.kill(os.getpid(), signal.SIGUSR1)
        else:
            _thread.interrupt_main()
        write_file(path, way)

    def waits_for_the_next_call():
        frame = sys._current_frames()[threading.main_thread().ident]
        code = frame.f_code
        return code.co_name == "_wait_for_frames" and "CALL" in dis.opname[code.co_code[frame.f_lasti]]

    def on_signal(number, frame):
        raise KeyError("of a handler")

    signal.signal(signal.SIGUSR1, on_signal)
    threading.Thread(target=interrupt).start()


def leave_a_thread():
    threading.Thread(target=time.sleep, args=(3600,)).start()


def leave_a_child():
    return subprocess.Popen(["sleep", "3600"], start_new_session=True).pid


def leave_a_fork():
    pid = os.fork()
    if not pid:
        time.sleep(3600)
    return pid


def leave_an_orphan():
    return int(subprocess.check_output(["setsid", "sh", "-c", "sleep 3600 >/dev/null & echo $!"]))


def leave_a_daemon():
    reading, writing = os.pipe()
    if not os.fork():
        os.setsid()
        pid = os.fork()
        if pid:
            os.write(writing, str(pid).encode())
            os._exit(0)
        time.sleep(3600)
        os._exit(0)
    os.wait()
    return int(os.read(reading, 100))


def at_exit(path, seconds=0):
    """Have a file written when the worker ends, which then takes so long."""
    import atexit

    atexit.register(time.sleep, seconds)
    atexit.register(write_file, path, "ran")  # called first
    return os.getpid()


def handle_interrupts(path):
    interrupts = []
    signal.signal(signal.SIGINT, lambda number, frame: interrupts.append(number))
    write_file(path, str(os.getpid()))
    while not interrupts:
        time.sleep(0.01)
    return "interrupted by signal %d" % interrupts[0]


def ignore_interrupts(path):
    signal.signal(signal.SIGINT, lambda number, frame: None)
    write_file(path, str(os.getpid()))
    while True:
        time.sleep(0.01)


def leave_pid_and_wait_for(path, sign):
    write_file(path, str(os.getpid()))
    while not os.path.exists(sign):
        time.sleep(0.01)
    return os.getpid()


def eat_memory(path):
    """Take all the memory there is, with a child that has left the session; leave both pids in a file."""
    child = subprocess.Popen(["sleep", "3600"], start_new_session=True)
    write_file(path, "%d %d" % (os.getpid(), child.pid))
    eaten = []
    while True:
        eaten.append(b"x" * (1 << 20))


def let_a_child_eat_memory():
    eater = "eaten = []\nwhile True: eaten.append(b'x' * (1 << 20))"
    return subprocess.call([sys.executable, "-c", eater])


def own_and_childs_oom_score_adj():
    command = ["cat", "/proc/self/oom_score_adj"]
    with open("/proc/self/oom_score_adj") as file:
        return int(file.read()), int(subprocess.check_output(command))


def ask_for_modules(count):
    """What an agent does that has been taken over: ask for one name after the other."""
    from trickle._agent import worker
    from trickle._wire.frames import Ask

    for number in range(count):
        worker._this.send(Ask(0, 0xFFFFFFFF, 0, b"nowhere_%d" % number))
    time.sleep(3600)


def fill_memory(path):
    """Leave our pid in a file and wait until that is gone, then take memory until the kernel has none."""
    write_file(path, str(os.getpid()))
    while os.path.exists(path):
        time.sleep(0.01)
    taken = []
    while True:
        taken.append(b"x" * (1 << 20))


def still_running(pids):
    """Those of these processes that are there, zombies aside."""
    found = []
    for pid in pids:
        try:
            with open("/proc/%d/stat" % pid) as file:
                if file.read().rpartition(")")[2].split()[0] not in ("Z", "X"):
                    found.append(pid)
        except OSError:
            pass
    return found


def hold_the_gil():
    return sum(range(10**13))


def compiled_files():
    """Over there: the file names of the agent's modules that came as code."""
    finder = next(each for each in sys.meta_path if type(each).__name__ == "AgentFinder")
    return {name: sorted(set(file_names(code))) for name, code in finder.code.items()}


def agent_sources():
    """Over there: how many of the agent's sources are kept unpacked; one of them, and a line by linecache."""
    import linecache

    finder = next(each for each in sys.meta_path if type(each).__name__ == "AgentFinder")
    module = sys.modules["trickle._agent.worker"]
    line = linecache.getline(module.__file__, 1, module.__dict__)
    return len(finder.sources), finder.get_source("trickle._agent.broker"), line


def file_names(code):
    yield code.co_filename
    for part in code.co_consts:
        if hasattr(part, "co_filename"):
            yield from file_names(part)
