#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Judge a run of vmtest.sh by what it left in its folder.

The folder has ktap (the results), record (what PID 1 says), serial (the log of
the kernel), status (of QEMU, 124 or 137 if its time was up) and qemu (what it
printed). A run passes only if the guest wrote its exit record and powered off,
the KTAP is whole, every test that is expected was seen, every failure and skip is
one that the expectations list, the kernel log is clean, nothing leaked and the
kernel is not tainted. The results go to junit.xml in the same folder.

verdict_test.py shows for each rule here that a run is judged wrongly without it.

kunit.py's parser is not used: it ignores indentation, so that one stray line
shifts all that follow, and it drops results that have no number or a '#' in their
name. Here a line that looks like a result is one.
"""

import argparse
import collections
import itertools
import pathlib
import re
import sys
import traceback
import xml.etree.ElementTree as xml

PASS, FAILED, INFRA, SPLAT, NOTHING = range(5)
MEANING = ('pass', 'a test failed', 'infrastructure', 'kernel splat, crash or leak', 'not run')

# TAINT_TEST: set by in-kernel test code (iommufd's mock, KUnit).
# TAINT_SOFTLOCKUP: set by opening sw_sync; a real soft lockup stands in the log.
TAINT_ALLOWED = 1 << 18 | 1 << 14

RESULT = re.compile(r'( *)(not )?ok\b *(\d*)[ -]*(.*)')
DIRECTIVE = re.compile(r'(?<!\S)# *((?:SKIP|XFAIL|TIMEOUT|signal|exit=|left).*)', re.IGNORECASE)
PLAN = re.compile(r'( *)1\.\.(\d{1,9})\b(?: *# *(SKIP.*))?', re.IGNORECASE)
BAIL_OUT = re.compile(r'( *)(Bail out!.*)')
FRAME = re.compile(r' *#  +(?:RUN|FAIL) ')
KTAP = re.compile(r' *(?:K?TAP version \d|1\.\.\d)')
RECORD = re.compile(r'up|stuck|prog (?:\d+|timeout)|(?:leaks|dma_errors|tainted) \S+|end|')
EXPECT = re.compile(r'(ok|skip|fail|none|leak) +(?!# )(\S.*?)(?:\s+# (.*)|\s*)')
HOST_FILE = re.compile(r'# host-file ([^/\s\0]+) (0x[0-9a-fA-F]{1,15}|[0-9]{1,18}) ((?:[0-9a-fA-F]{2})+)')

# outcome: passed, failed or skipped; head: what to say of it, '' for nothing
Case = collections.namedtuple('Case', 'outcome head name reason')


class BadInput(Exception):
    pass


def clean(text):
    """Without what neither XML nor a terminal can take"""
    return re.sub('[^\t\n -~\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]', '?', text)


def say(text):
    print(f'# {clean(text)}')


def read(path):
    """Lines end with a newline and nothing else: what a test prints may hold anything."""
    if not path.exists():
        return []
    return [line.rstrip('\r') for line in path.read_bytes().decode(errors='replace').split('\n')]


def patterns(path):
    found = []
    for nr, line in enumerate(read(path), 1):
        if line and not line.startswith('#'):
            try:
                found.append(re.compile(line))
            except re.error as error:
                raise BadInput(f'{path}:{nr}: no regular expression, {error}: {line}') from None
            if found[-1].search(''):
                raise BadInput(f'{path}:{nr}: this matches every line: {line}')
    return found


def read_expectations(paths):
    """Lines "ok|skip|fail|none|leak NAME [# reason]"; a later one overrides an earlier one."""
    expected = {}
    for path in paths:
        for nr, line in enumerate(read(pathlib.Path(path)), 1):
            if not line.strip() or line.startswith('#'):
                continue
            match = EXPECT.fullmatch(line)
            if not match:
                raise BadInput(f'{path}:{nr}: not "ok|skip|fail|none|leak NAME [# reason]": {line}')
            result, name, reason = match.groups(default='')
            expected[name] = (result, reason)
    return expected


class Block:
    """The results of one level: of the run, of a program, of a subtest."""

    def __init__(self):
        self.plan = None
        self.skip = ''      # of "1..0 # SKIP"
        self.number = 0     # of the last result
        self.wrong = ''
        self.said = ''      # before its result, if that is "not ok"
        self.results = []

    def empty(self):
        return not self.plan and not self.results

    def fault(self):
        """What is wrong with its form"""
        if not self.empty() and self.plan != len(self.results):
            return f'its plan is {self.plan}, {len(self.results)} results'
        return self.wrong

    def add_plan(self, count, skip):
        # a test can be a script that runs several programs
        self.plan = (self.plan or 0) + count
        self.number = 0
        self.skip = skip

    def add(self, bad, number, name, below):
        found = DIRECTIVE.search(name)
        directive = found[1].rstrip() if found else ''
        name = name[:found.start()] if found else name
        skip = directive.upper().startswith(('SKIP', 'XFAIL'))
        self.number += 1
        # ksft_exit_skip() gives a number that the result before it had
        if number and number.lstrip('0') != str(self.number) and not skip:
            self.wrong = f'its result {self.number} has the number {number}'
        self.results.append(('skip' if skip else 'fail' if bad else 'ok',
                             name.strip() or directive or number, directive, below))

    def leaves(self, path=''):
        """(name, result, why) of all below, the parents too where they say more."""
        for result, name, why, below in self.results:
            name = f'{path}/{name}' if path else name
            if below.fault():
                yield f'{name} ({below.fault()})', 'fail', ''
            if below.empty():
                if result == 'ok' and below.skip:
                    result, why = 'skip', below.skip
                yield (f'{name} ({why})' if result == 'fail' and why else name), result, why or below.said
                continue
            inner = list(below.leaves(name))
            yield from inner
            # A program that died, or says that it failed where none of its tests did
            if result == 'fail' and (why.startswith(('signal', 'TIMEOUT')) or
                                     all(r != 'fail' for _, r, _ in inner)):
                yield f'{name} ({why or "failed"})', 'fail', why
            if result == 'skip' and all(r != 'skip' for _, r, _ in inner):
                yield f'{name} (exit=4)', 'skip', why


def parse_ktap(lines):
    """A result takes what was seen one level below it since the last one."""
    blocks = collections.defaultdict(Block)
    said = collections.deque(maxlen=5)
    for line in lines:
        plan, result, bail_out = PLAN.match(line), RESULT.match(line), BAIL_OUT.match(line)
        if plan:
            blocks[len(plan[1]) // 4].add_plan(int(plan[2]), plan[3])
            said.clear()
        elif bail_out:
            blocks[len(bail_out[1]) // 4].results.append(('fail', bail_out[2], '', Block()))
        elif result:
            indent, bad, number, name = result.groups(default='')
            depth = len(indent) // 4
            below = blocks.pop(depth + 1, Block())
            if [blocks.pop(deeper) for deeper in list(blocks) if deeper > depth]:
                below.wrong = 'results below a result that is missing'
            if bad:
                below.said = ' | '.join(said)
            said.clear()
            blocks[depth].add(bad, number, name, below)
        elif line.strip() and not KTAP.match(line) and not FRAME.match(line):
            said.append(line.strip(' #')[:200])
    if any(blocks):
        blocks[0].wrong = 'results below a result that is missing'
    return blocks[0]


def host_files(run, lines):
    """Lines "# host-file NAME OFFSET HEX": what that file of the run must hold now."""
    for line in lines:
        line = line.strip()
        if not re.match(r'#\s*host-file\b', line):
            continue
        match = HOST_FILE.fullmatch(line)
        if not match:
            yield line.lstrip('# '), 'fail', 'not "# host-file NAME OFFSET HEX"'
            continue
        name, offset, want = match.groups()
        try:
            with open(run / name, 'rb') as file:
                file.seek(int(offset, 16 if offset.startswith('0x') else 10))
                got = file.read(len(want) // 2).hex() or 'nothing'
        except OSError as error:
            got = error.strerror
        yield f'host-file {name} {offset}', 'ok' if got == want.lower() else 'fail', f'not {want} but {got}'


def number_twins(results):
    seen = collections.Counter()
    for name, *rest in results:
        seen[name] += 1
        yield f'{name}#{seen[name]}' if seen[name] > 1 else name, *rest


def program(name):
    """COLLECTION:PROG[ ARGS] of a test's name; collections have slashes too."""
    collection, colon, rest = name.partition(':')
    return collection + colon + re.split(r'/| \(', rest)[0]


def judge_results(results, expected, everything, left_out, exact):
    cases = []
    names = {name for name, *_ in results}
    programs = {program(name) for name in names}
    for name, result, why in results:
        want, reason = expected.get(name, ('', ''))
        if exact and result != want:
            cases.append(Case('failed', f'DIFFERS, {want or "nothing"} is recorded and not {result}', name, why))
        elif result == 'ok':
            better = f'better than expected ({want})' if want in ('skip', 'fail') else ''
            cases.append(Case('passed', better, name, reason))
        elif result == want:
            known = 'known failure, not counted as passed' if want == 'fail' else ''
            cases.append(Case('skipped', known, name, reason or why))
        else:
            cases.append(Case('failed', 'FAILED' if result == 'fail' else 'SKIPPED, and not listed as a skip',
                              name, why))
    for name, (want, reason) in expected.items():
        ran = program(name) in programs or everything and left_out.isdisjoint(
            (program(name), name[:name.find(':') + 1]))
        if want == 'ok' and name not in names and ran:
            cases.append(Case('failed', 'MISSING, though expected', name, reason))
    return cases


def log_problems(lines, splats):
    deny = patterns(pathlib.Path(splats + '.deny'))
    allow = patterns(pathlib.Path(splats + '.allow'))
    if not deny:
        raise BadInput(f'{splats}.deny has no patterns')
    bad = [(SPLAT, f'kernel log, line {nr}: {line}') for nr, line in enumerate(lines, 1)
           if any(p.search(line[:4096]) for p in deny) and not any(p.search(line[:4096]) for p in allow)]
    return bad[:20]


def known_leaks(serial, expected):
    """Takes the reports of known leaks, a function's, out of the log. Returns their cases."""
    cases = []
    for nr, line in enumerate(serial):
        if 'kmemleak: unreferenced object' in line:
            report = itertools.takewhile(lambda line: 'kmemleak:   ' in line, serial[nr + 1:])
            functions = re.findall(r' (\w+)\+0x', '\n'.join(report))
            for name in functions:
                want, reason = expected.get(name, ('', ''))
                if want == 'leak':
                    cases.append(Case('skipped', 'known leak', name, reason))
                    serial[nr] = ''
                    break
    return cases


def number(text):
    return int(text) if text and re.fullmatch(r'-?\d+', text) else None


def record_problems(run, record, serial, ktap, leaks):
    """What the guest said of itself, as (exit code, text). So many leaks are known."""
    status = (read(run / 'status') or ['unknown'])[0]
    words = dict(line.partition(' ')[::2] for line in record)
    if 'up' not in words:
        if any('Linux version' in line for line in serial):
            return [(SPLAT, 'the guest did not come up')]
        last = [line for line in read(run / 'qemu') if line][-5:]
        return [(INFRA, 'QEMU did not start the guest')] + [(INFRA, f'QEMU: {line}') for line in last]
    if 'setup' in words:
        return [(INFRA, 'the set-up of the guest failed')]
    if 'end' not in words:
        last = [line for line in ktap if re.match(r'# \S+:.*, timeout', line)]
        return [(SPLAT, 'the guest wrote no exit record' +
                 (', its time was up' if status in ('124', '137') else '') +
                 (f'; the last test was {last[-1][2:]}' if last else ''))]
    bad = [f'the guest said: {line}' for line in record if not RECORD.fullmatch(line)]
    if record[-2:] != ['end', '']:
        bad.append('the exit record is not the last thing that the guest wrote')
    if status != '0' or not any('reboot: Power down' in line for line in serial):
        bad.append(f'the guest did not power off (QEMU ended with status {status})')
    if number(words.get('leaks')) != leaks:
        bad.append(f'kmemleak: {words.get("leaks", "no answer")} leaks')
    if number(words.get('dma_errors')) != 0:
        bad.append(f'DMA-API: {words.get("dma_errors", "no answer")} errors')
    tainted = number(words.get('tainted'))
    if tainted is None or tainted & ~TAINT_ALLOWED:
        bad.append(f'the kernel is tainted: {words.get("tainted", "no answer")}')
    if 'stuck' in words:
        bad.append('a process could not be killed')
    return [(SPLAT, text) for text in bad]


def prog_results(prog, block, record):
    """The results of a program that ran instead of the tests"""
    said = next((line[5:] for line in record if line.startswith('prog ')), None)
    say(f'{prog}: ' + {None: 'did not end', 'timeout': 'timeout'}.get(said, f'exit status {said}'))
    run = Block()
    run.plan = 1
    why = {None: 'did not end', '0': '', 'timeout': 'TIMEOUT'}.get(said, f'exit={said}')
    run.results.append(('fail' if why else 'ok', prog, why, block))
    return run


def judge(args):
    """Returns the cases, and as (exit code, text) what else is wrong: the worst first."""
    ktap, record, serial = (read(args.run / f) for f in ('ktap', 'record', 'serial'))
    expected = read_expectations(args.expect)
    leaks = known_leaks(serial, expected)
    problems = log_problems(serial, args.splats) + record_problems(args.run, record, serial, ktap, len(leaks))

    block = parse_ktap(ktap)
    if args.prog:
        # What a program prints need be no KTAP
        block = prog_results(args.prog, block if any(map(KTAP.match, ktap)) else Block(), record)
    elif block.empty() or block.fault() or ktap[-1]:
        problems.append((SPLAT, 'the KTAP is not complete'))
    results = list(number_twins([*block.leaves(), *host_files(args.run, ktap)]))

    if args.record and 'end' in record:
        args.record.write_text('# Recorded by vmtest.sh -r\n' +
                               ''.join(f'{result} {name}\n' for name, result, _ in results))

    return judge_results(results, expected, args.all, set(args.left_out), args.exact) + leaks, problems


def write_junit(path, cases, counts, problems):
    errors = 1 if problems else 0
    suite = xml.Element('testsuite', name='vmtest', tests=str(len(cases) + errors), errors=str(errors),
                        failures=str(counts['failed']), skipped=str(counts['skipped']))
    for case in cases:
        test = xml.SubElement(suite, 'testcase', classname=clean(program(case.name)), name=clean(case.name))
        if case.outcome != 'passed':
            xml.SubElement(test, {'failed': 'failure', 'skipped': 'skipped'}[case.outcome],
                           message=clean(case.reason or case.head))
    if problems:
        test = xml.SubElement(suite, 'testcase', classname='vmtest', name='kernel')
        error = xml.SubElement(test, 'error', message=clean(problems[0][1]))
        error.text = clean('\n'.join(text for _, text in problems))
    xml.ElementTree(suite).write(path, encoding='utf-8', xml_declaration=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--run', type=pathlib.Path, required=True)
    parser.add_argument('--splats', required=True)
    parser.add_argument('--prog')
    parser.add_argument('--all', action='store_true', help='all tests ran: miss those that are expected and were not seen')
    parser.add_argument('--left-out', action='append', default=[], help='but not this program, or COLLECTION:')
    parser.add_argument('--exact', action='store_true', help='a result that is better or that nobody expects is red too')
    parser.add_argument('--record', type=pathlib.Path)
    parser.add_argument('expect', nargs='*')
    args = parser.parse_args()
    cases = []
    try:
        cases, problems = judge(args)
    except BadInput as error:
        problems = [(INFRA, str(error))]
    except Exception:
        problems = [(INFRA, traceback.format_exc())]
    counts = collections.Counter(case.outcome for case in cases)
    if not problems and not counts['passed'] and not counts['failed']:
        problems = [(NOTHING, 'nothing was tested')]
    try:
        write_junit(args.run / 'junit.xml', cases, counts, problems)
    except OSError as error:
        problems.append((INFRA, f'junit.xml: {error}'))

    for _, text in problems:
        say(text)
    for case in cases:
        if case.head:
            reason = '' if not case.reason or case.name.endswith(f'({case.reason})') else f': {case.reason}'
            say(f'{case.head}: {case.name}{reason}')
    code = problems[0][0] if problems else FAILED if counts['failed'] else PASS
    say(f'verdict: {MEANING[code]} (exit code {code}); everything is in {args.run}')
    print(f'{counts["passed"]} passed, {counts["failed"]} failed, {counts["skipped"]} skipped')
    return code


if __name__ == '__main__':
    sys.stdout.reconfigure(errors='replace')
    sys.exit(main())
