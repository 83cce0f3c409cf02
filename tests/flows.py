"""Generators and functions with channels for tests, run over there: nothing but an old Python and its library."""

import os
import threading
import time

from tests.work import write_file


def count(limit, size=0):
    for number in range(limit):
        yield (number, b"x" * size) if size else number


def count_in_a_list(limit):
    return list(range(limit))


def count_and_fail(limit):
    for number in range(limit):
        yield number
    raise ValueError("no more than %d" % limit)


def count_and_tell(path, size=1):
    """Yield for ever; tell how many of them there are, and whether we were closed."""
    number = 0
    try:
        while True:
            number += 1
            with open(path + ".count", "w") as file:
                file.write(str(number))
            yield b"x" * size
    finally:
        write_file(path, "closed at %d" % number)


def one_and_a_long_step(path):
    yield os.getpid()
    try:
        write_file(path, "in the step")
        time.sleep(3600)
    finally:
        write_file(path + ".cleaned", "clean")


def refuse_to_close(path):
    try:
        yield os.getpid()
    finally:
        while True:
            try:
                time.sleep(3600)
            except BaseException:
                pass


def fail_when_closed():
    try:
        yield 1
    finally:
        raise KeyError("while closing")


def unpicklable():
    yield threading.Lock()


def print_and_yield():
    for number in range(3):
        print("line", number)
        yield number


def die_after(number):
    for each in range(number):
        yield each
    os.kill(os.getpid(), 9)


def echo(channel, suffix=""):
    for value in channel:
        channel.send((value, suffix))
    return "done"


def add_up(channel):
    return sum(channel)


def take_one_and_close(channel, path):
    from trickle import remote

    channel.receive()
    channel.close()
    write_file(path, "closed")
    while True:
        remote.check_cancelled()  # in memory nothing else interrupts it
        time.sleep(0.01)


def send_without_end(channel):
    number = 0
    while True:
        channel.send(number)
        number += 1


def send_and_fail(channel):
    channel.send(1)
    channel.send(2)
    raise ValueError("after two")


def close_at_once(channel):
    channel.close()
    return 1


def die_when_told(channel):
    channel.receive()
    os.kill(os.getpid(), 9)


def send_bytes(channel, *sizes):
    for size in sizes:
        channel.send(bytes(size))


def raise_in_the_end(channel, path):
    try:
        write_file(path, "runs")
        channel.receive()
    finally:
        raise KeyError("cleaning up")


def what_receiving_gives(channel):
    found = []
    for timeout in (0.01, None, None, 0.01):
        try:
            found.append(channel.receive(timeout))
        except TimeoutError:
            found.append("timeout")
            channel.send("go on")
        except EOFError:
            found.append("eof")
    return found


def what_sending_gives(channel):
    channel.send(1)
    channel.send_eof()
    channel.send_eof()
    try:
        channel.send(2)
    except ValueError as exc:
        return str(exc)


def wait_for_something(channel, path):
    write_file(path, str(os.getpid()))
    return channel.receive()


def receive_when_told(channel, path):
    while not os.path.exists(path):
        time.sleep(0.005)
    return sum(1 for value in channel)


def echo_in_a_thread(channel):
    def echo_all():
        for value in channel:
            channel.send(value)
        channel.send_eof()

    thread = threading.Thread(target=echo_all)
    thread.start()
    thread.join()
    return "done"


def receive_within(channel, timeout):
    channel.send("receives")
    return channel.receive(timeout=timeout)


def tell_why_it_ends(channel, path):
    from trickle import remote

    channel.send("runs")
    try:
        channel.receive()
    except remote.CallCancelled as exc:
        write_file(path, str(exc.reason))
        raise


def in_two_threads(channel):
    def send():
        for number in range(100):
            channel.send(number)
        channel.send_eof()

    thread = threading.Thread(target=send)
    thread.start()
    total = sum(channel)
    thread.join()
    return total


def use_a_value(channel):
    return channel.receive()(20)


async def async_count(limit):
    import trio

    for number in range(limit):
        await trio.sleep(0)
        yield number


async def async_count_and_tell(path):
    import trio

    try:
        while True:
            yield 1
            await trio.sleep(0.001)
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep(0.01)
            write_file(path, "closed")


def scripted(sizes, stalls, fails, path):
    try:
        for number, size in enumerate(sizes):
            if number in stalls:
                time.sleep(0.003)
            yield (b"%d:" % number).ljust(size, b"x")[:size]
        if fails:
            raise ValueError("as planned")
    finally:
        write_file(path, "over")


def scripted_echo(channel, stalls, fails, path):
    try:
        number = 0
        for value in channel:
            if number in stalls:
                time.sleep(0.003)
            channel.send(value)
            number += 1
        if fails:
            raise ValueError("as planned")
        return number
    finally:
        write_file(path, "over")


def receive_nothing(channel):
    while True:
        time.sleep(3600)


def receive_some(channel, count):
    for _ in range(count):
        channel.receive()
    channel.send(count)
    while True:
        time.sleep(3600)


def print_without_end():
    while True:
        print("x" * 99)
