#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Judge a run of vmtest.sh by what it left in its folder.

The folder has ktap (the results), record (what PID 1 says), serial (the log of
the kernel), status (of QEMU, 124 or 137 if its time was up) and qemu (what it
printed). A run passes only if the guest wrote its exit record and powered off,
the KTAP is whole, every test that is expected was seen, every failure and skip is
one that the expectations list, the kernel log is clean, nothing leaked and the
kernel is not tainted.

kunit.py's parser is not used: it ignores indentation, so that one stray line
shifts all that follow, and it drops results that have no number or a '#' in their
name. Here a line that looks like a result is one.
"""

import argparse
import collections
import pathlib
import re
import sys
import traceback

PASS, FAILED, INFRA, SPLAT, NOTHING = range(5)
MEANING = ('pass', 'a test failed', 'infrastructure', 'kernel splat, crash or leak', 'not run')

# TAINT_TEST: set by in-kernel test code (iommufd's mock, KUnit).
# TAINT_SOFTLOCKUP: set by opening sw_sync; a real soft lockup stands in the log.
TAINT_ALLOWED = 1 << 18 | 1 << 14

RESULT = re.compile(r'( *)(not )?ok\b *(\d*)[ -]*(.*?) *(?:(?<!\S)# *((?:SKIP|XFAIL|TODO|TIMEOUT|signal|exit=|left).*))?$',
                    re.IGNORECASE)
PLAN = re.compile(r'( *)1\.\.(\d+)')


class BadInput(Exception):
    pass


def say(text):
    print(f'# {text}')


def read(path):
    """Lines end with a newline and nothing else: what a test prints may hold anything."""
    if not path.exists():
        return []
    return [line.rstrip('\r') for line in path.read_bytes().decode(errors='replace').split('\n')]


def patterns(path):
    lines = [line for line in read(path) if line and not line.startswith('#')]
    if path.suffix == '.deny' and not lines:
        raise BadInput(f'{path} has no patterns')
    return [re.compile(line) for line in lines]


def read_expectations(paths):
    """Lines "ok|skip|fail NAME [# reason]"; a later file overrides an earlier one."""
    expected = {}
    for path in paths:
        for nr, line in enumerate(read(pathlib.Path(path)), 1):
            line = re.sub(r'(^|\s+)# .*', '', line).strip()
            if not line:
                continue
            result, _, name = line.partition(' ')
            if result not in ('ok', 'skip', 'fail') or not name:
                raise BadInput(f'{path}:{nr}: not "ok|skip|fail NAME [# reason]": {line}')
            expected[name.strip()] = result
    return expected


class Block:
    """The results of one level: of the run, of a program, of a subtest."""

    def __init__(self):
        self.plan = None
        self.results = []

    def empty(self):
        return not self.plan and not self.results

    def whole(self):
        return self.empty() or self.plan == len(self.results)

    def leaves(self, path=''):
        """(name, result) of all below, the parents too where they say more."""
        for result, name, why, below in self.results:
            name = f'{path}/{name}' if path else name
            if below.empty():
                yield (f'{name} ({why})' if result == 'fail' and why else name), result
                continue
            inner = list(below.leaves(name))
            yield from inner
            # A program that died, or says that it failed where none of its tests did
            if result == 'fail' and (why.startswith(('signal', 'TIMEOUT', 'left')) or
                                     all(r != 'fail' for _, r in inner)):
                yield f'{name} ({why or "failed"})', 'fail'
            if result == 'skip' and all(r != 'skip' for _, r in inner):
                yield f'{name} (exit=4)', 'skip'
            if not below.whole():
                yield f'{name} (its plan is {below.plan}, {len(below.results)} results)', 'fail'


def parse_ktap(lines):
    """A result takes what was seen one level below it since the last one."""
    blocks = collections.defaultdict(Block)
    for line in lines:
        plan, result = PLAN.match(line), RESULT.match(line)
        if plan:
            block = blocks[len(plan[1]) // 4]
            # a test can be a script that runs several programs
            block.plan = (block.plan or 0) + int(plan[2])
        elif result:
            indent, bad, number, name, directive = result.groups(default='')
            word = directive[:5].upper().rstrip(' :')
            status = 'skip' if word in ('SKIP', 'XFAIL') else 'fail' if bad else 'ok'
            depth = len(indent) // 4
            below = blocks.pop(depth + 1, Block())
            blocks[depth].results.append((status, name.strip() or directive or number, directive, below))
    if len(blocks) > 1:     # results whose parent's result is missing
        blocks[0].plan = None
    return blocks[0]


def number_twins(results):
    seen = collections.Counter()
    for name, result in results:
        seen[name] += 1
        yield (f'{name}#{seen[name]}' if seen[name] > 1 else name), result


def program(name):
    """COLLECTION:PROG[ ARGS] of a test's name; collections have slashes too."""
    collection, _, rest = name.partition(':')
    return collection + ':' + re.split(r'/| \(', rest)[0]


def judge_results(results, expected, everything):
    """Counts, and prints what is not as expected."""
    counts = collections.Counter()
    names = {name for name, _ in results}
    programs = {program(name) for name in names}
    for name, result in results:
        want = expected.get(name)
        if result == 'ok':
            counts['passed'] += 1
            if want in ('skip', 'fail'):
                say(f'better than expected ({want}): {name}')
        elif result == want:
            counts['skipped'] += 1
            if want == 'fail':
                say(f'known failure, not counted as passed: {name}')
        else:
            counts['failed'] += 1
            say(f'FAILED: {name}' if result == 'fail' else f'SKIPPED, and not listed as a skip: {name}')
    for name, want in expected.items():
        if want == 'ok' and name not in names and (everything or program(name) in programs):
            counts['failed'] += 1
            say(f'MISSING: {name} is expected and was not seen')
    return counts


def scan_log(lines, splats):
    deny = patterns(pathlib.Path(splats + '.deny'))
    allow = patterns(pathlib.Path(splats + '.allow'))
    bad = [(nr, line) for nr, line in enumerate(lines, 1)
           if any(p.search(line) for p in deny) and not any(p.search(line) for p in allow)]
    for nr, line in bad[:20]:
        say(f'kernel log, line {nr}: {line}')
    return bool(bad)


def number(text):
    return int(text) if text and re.fullmatch(r'-?\d+', text) else None


def judge_record(run, record, serial, ktap):
    """What the guest said of itself. Returns an exit code, PASS if all is well."""
    status = (read(run / 'status') or ['unknown'])[0]
    words = dict(line.partition(' ')[::2] for line in record)
    if 'up' not in words:
        if not any('Linux version' in line for line in serial):
            say('QEMU did not start the guest')
            for line in [line for line in read(run / 'qemu') if line][-5:]:
                say(f'QEMU: {line}')
            return INFRA
        say('the guest did not come up')
        return SPLAT
    if 'setup' in words:
        say('the set-up of the guest failed')
        return INFRA
    if 'end' not in words:
        last = [line for line in ktap if re.match(r'# \S+:.*, timeout', line)]
        say('the guest wrote no exit record' + (', its time was up' if status in ('124', '137') else '') +
            (f'; the last test was {last[-1][2:]}' if last else ''))
        return SPLAT
    bad = []
    if status != '0' or not any('reboot: Power down' in line for line in serial):
        bad.append(f'the guest did not power off (QEMU ended with status {status})')
    if number(words.get('leaks')) != 0:
        bad.append(f'kmemleak: {words.get("leaks", "no answer")} leaks')
    if number(words.get('dma_errors')) != 0:
        bad.append(f'DMA-API: {words.get("dma_errors", "no answer")} errors')
    tainted = number(words.get('tainted'))
    if tainted is None or tainted & ~TAINT_ALLOWED:
        bad.append(f'the kernel is tainted: {words.get("tainted", "no answer")}')
    if 'stuck' in words:
        bad.append('a process could not be killed')
    for text in bad:
        say(text)
    return SPLAT if bad else PASS


def prog_results(prog, block, record):
    """The results of a program that ran instead of the tests"""
    said = next((line.split()[1] for line in record if line.startswith('prog ')), None)
    say(f'{prog}: ' + {None: 'did not end', 'timeout': 'timeout'}.get(said, f'exit status {said}'))
    run = Block()
    run.plan = 1
    why = '' if said == '0' else 'TIMEOUT' if said == 'timeout' else f'exit={said}'
    run.results.append(('fail' if why else 'ok', prog, why, block))
    return run


def judge(args):
    ktap, record, serial = (read(args.run / f) for f in ('ktap', 'record', 'serial'))
    code = judge_record(args.run, record, serial, ktap)
    if scan_log(serial, args.splats):
        code = SPLAT

    block = parse_ktap(ktap)
    if not block.whole() or (block.empty() and not args.prog):
        say('the KTAP is not complete')
        code = code or SPLAT
    if args.prog:
        block = prog_results(args.prog, block, record)
    results = list(number_twins(block.leaves()))

    if args.record and code in (PASS, SPLAT) and 'end' in record:
        args.record.write_text('# Recorded by vmtest.sh -r\n' +
                               ''.join(f'{result} {name}\n' for name, result in results))

    counts = judge_results(results, read_expectations(args.expect), args.all)
    if counts['failed']:
        code = code or FAILED
    elif not counts['passed']:
        say('nothing was tested')
        code = code or NOTHING
    return code, counts


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--run', type=pathlib.Path, required=True)
    parser.add_argument('--splats', required=True)
    parser.add_argument('--prog')
    parser.add_argument('--all', action='store_true', help='all tests ran: miss those that are expected and were not seen')
    parser.add_argument('--record', type=pathlib.Path)
    parser.add_argument('expect', nargs='*')
    args = parser.parse_args()
    counts = collections.Counter()
    try:
        code, counts = judge(args)
    except BadInput as error:
        say(error)
        code = INFRA
    except Exception:
        traceback.print_exc()
        code = INFRA
    say(f'verdict: {MEANING[code]} (exit code {code}); everything is in {args.run}')
    print(f'{counts["passed"]} passed, {counts["failed"]} failed, {counts["skipped"]} skipped')
    return code


if __name__ == '__main__':
    sys.exit(main())
