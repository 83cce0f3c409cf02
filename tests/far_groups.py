"""What the hosts of a group do in tests, each by a script of its own: plain functions, on any Python."""

import os
import time

HOUR = 3600


def act(script, item=None):
    """Do what *script* says for this host, or for any ("*"): a word, and what it is about."""
    what, about = part_of(script)
    if what == "raise":
        raise ValueError(about)
    if what == "hang":
        return hang(about, item)
    if what == "wait":
        wait_for(about)
    if what == "die":
        os._exit(3)
    if what == "once":
        fail_once(about)
    if what == "overlap":
        return overlap(about)
    return item if item is not None else host_name()


def give_some(script, count):
    """Yield so many numbers; or hang behind the first, by a script."""
    what, about = part_of(script)
    for number in range(count):
        yield number
        if what == "hang":
            hang(about)


def part_of(script):
    return script.get(host_name(), script.get("*", ("return", None)))


def host_name():
    from trickle import remote

    return remote.host_name


def hang(directory, item=None):
    """Say that we run, and that we do not any more; so that there is something to look at."""
    path = os.path.join(directory, host_name() if item is None else "%s-%s" % (host_name(), item))
    write(path, str(os.getpid()))
    try:
        time.sleep(HOUR)
    finally:
        write(path + ".over", "over")


def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.01)


def fail_once(directory):
    path = os.path.join(directory, host_name())
    if not os.path.exists(path):
        write(path, "failed")
        raise ValueError("for the first time")


def overlap(directory):
    """How many of us are here at once, ourselves included."""
    path = os.path.join(directory, host_name())
    write(path, "here")
    time.sleep(0.05)
    count = len([name for name in os.listdir(directory) if not name.endswith(".new")])
    os.remove(path)
    return count


def write(path, text):
    with open(path + ".new", "w") as file:
        file.write(text)
    os.rename(path + ".new", path)


def act_when(script, path):
    """The same; but what raises waits for a file first."""
    if part_of(script)[0] == "raise":
        wait_for(path)
    return act(script)


def act_item(item):
    """Do what an item says."""
    what, about = item
    if what == "hang":
        return hang(about)
    if what == "hang the first":
        if first_of_all(about):
            return hang(about)
        return "not the first"
    if what == "wait":
        wait_for(about)
    return about


def first_of_all(directory):
    try:
        os.mkdir(os.path.join(directory, "first.d"))
    except OSError:
        return False
    return True


def hang_item(item):
    directory, number = item
    return hang(directory, number)


def give_back(item):
    return item
