"""Programs and their tests as people write them: the program that a response means, and the names its tests need."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from trd_cli.graders import code
from trd_cli.graders.base import Question
from trd_cli.graders.fences import program_of
from trd_cli.graders.sandbox import choose_level

SUM = {"kind": "stdin", "inputs": ["2 3\n", "10 -4\n"], "outputs": ["5\n", "6\n"]}


@pytest.fixture(scope="module")
def options() -> code.CodeOptions:
    return code.CodeOptions(choose_level("auto"), test_timeout=5.0, code_timeout=20.0, memory=4 << 30)


def verdict(response: str, tests: Any, options: code.CodeOptions) -> tuple[str, str]:
    spec = {"kind": "functional", "code": tests} if isinstance(tests, str) else tests
    grade = code.grade(Question("code", response, None, json.dumps(spec)), options)
    return grade.verdict, grade.detail or ""


FENCES: dict[str, tuple[str, Any, str]] = {
    "output untagged": (
        "```python\na,b=map(int,input().split())\nprint(a+b)\n```\nOutput:\n```\n5\n```\n",
        SUM,
        "correct",
    ),
    "bash": (
        "```python\na,b=map(int,input().split())\nprint(a+b)\n```\nRun:\n```bash\npython solution.py < in.txt\n```\n",
        SUM,
        "correct",
    ),
    "usage of function for stdin": (
        "I define:\n```python\ndef solve():\n    a,b=map(int,input().split())\n    print(a+b)\n```\nand call it\n```python\nif __name__=='__main__':\n    solve()\n```\n",
        SUM,
        "correct",
    ),
    "reader in second": (
        "```python\ndef add(a,b):\n    return a+b\n```\n```python\na,b=map(int,input().split())\nprint(add(a,b))\n```\n",
        SUM,
        "correct",
    ),
    "two parts with data": (
        "```python\nimport sys\nd=sys.stdin.read().split()\n```\n```python\nprint(int(d[0])+int(d[1]))\n```\n",
        SUM,
        "correct",
    ),
    "example call after full program": (
        "```python\ndef add(a,b):\n    return a+b\nif __name__=='__main__':\n    a,b=map(int,input().split())\n    print(add(a,b))\n```\ne.g.\n```python\nprint(add(2,3))  # 5\n```\n",
        SUM,
        "correct",
    ),
    "tests after full program": (
        "```python\ndef add(a,b):\n    return a+b\na,b=map(int,input().split())\nprint(add(a,b))\n```\n```python\nassert add(2,3)==5\nassert add(1,1)==2\n```\n",
        SUM,
        "correct",
    ),
    "revised last wrong": (
        "```python\na,b=map(int,input().split())\nprint(a+b)\n```\nbetter\n```python\na,b=map(int,input().split())\nprint(a-b)\n```\n",
        SUM,
        "incorrect",
    ),
    "revised last right": (
        "```python\na,b=map(int,input().split())\nprint(a-b)\n```\nbetter\n```python\na,b=map(int,input().split())\nprint(a+b)\n```\n",
        SUM,
        "correct",
    ),
    "on a line of text": ("The answer: ```python\na,b=map(int,input().split())\nprint(a+b)\n```\n", SUM, "correct"),
    "closing on line": ("```python\na,b=map(int,input().split())\nprint(a+b)```\n", SUM, "correct"),
    "docstring fences": (
        '```python\ndef f():\n    """\n    ```\n    x\n    ```\n    """\na,b=map(int,input().split())\nprint(a+b)\n```\n',
        SUM,
        "correct",
    ),
    "complexity fence": ("```python\na,b=map(int,input().split())\nprint(a+b)\n```\n```\nO(n)\n```\n", SUM, "correct"),
    "pycon": (
        "```python\na,b=map(int,input().split())\nprint(a+b)\n```\n```python\n>>> add(1,2)\n3\n```\n",
        SUM,
        "correct",
    ),
    "comment only": (
        "```python\na,b=map(int,input().split())\nprint(a+b)\n```\n```python\n# Output: 5\n```\n",
        SUM,
        "correct",
    ),
    "usage call kind": (
        "```python\ndef f(a):\n    return a*2\n```\n```python\nprint(f(3))\n```\n",
        {"kind": "call", "fn_name": "f", "inputs": [[2]], "outputs": [4]},
        "correct",
    ),
    "usage functional": (
        "```python\nclass Solution:\n    def f(self,a): return a*2\n```\n```python\nsol = Solution()\nprint(sol.f(3)) # 6\nassert sol.f(1)==2\n```\n",
        "assert Solution().f(2)==4",
        "correct",
    ),
    "helper in earlier": (
        "```python\ndef g(a):\n    return a*2\n```\n```python\ndef f(a):\n    return g(a)\n```\n",
        {"kind": "call", "fn_name": "f", "inputs": [[2]], "outputs": [4]},
        "correct",
    ),
    "helper later": (
        "```python\ndef f(a):\n    return g(a)\n```\n```python\ndef g(a):\n    return a*2\n```\n",
        {"kind": "call", "fn_name": "f", "inputs": [[2]], "outputs": [4]},
        "correct",
    ),
    "unittest after": (
        "```python\ndef f(a):\n    return a*2\n```\n```python\nimport unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(f(1),2)\nunittest.main()\n```\n",
        "assert f(2)==4",
        "correct",
    ),
    "second wrong same name": (
        "```python\ndef f(a):\n    return a*2\n```\n```python\ndef f(a):\n    return a*3\n```\n",
        "assert f(2)==4",
        "incorrect",
    ),
    "pytest after": (
        "```python\ndef f(a):\n    return a*2\n```\n```python\nfrom solution import f\ndef test_f():\n    assert f(1)==2\n```\n",
        "assert f(2)==4",
        "correct",
    ),
    "input example python tag": (
        "```python\na,b=map(int,input().split())\nprint(a+b)\n```\nInput\n```\n2 3\n```\nOutput\n```python\n5\n```\n",
        SUM,
        "correct",
    ),
}


@pytest.mark.parametrize("case", FENCES)
def test_the_program_is_the_fence_that_is_meant(case: str, options: code.CodeOptions) -> None:
    response, tests, right = FENCES[case]
    found, detail = verdict(response, tests, options)
    assert found == right, detail


THREADS: dict[str, tuple[str, Any, str]] = {
    "executor": (
        "from concurrent.futures import ThreadPoolExecutor\nex=ThreadPoolExecutor()\ndef m():\n    a,b=map(int,input().split())\n    print(a+b)\nex.submit(m)",
        SUM,
        "correct",
    ),
    "two threads chained": (
        "import threading,time\na,b=map(int,input().split())\ndef n(): time.sleep(.05); print(a+b)\ndef m(): threading.Thread(target=n).start()\nthreading.Thread(target=m).start()",
        SUM,
        "correct",
    ),
    "daemon thread dies": (
        "import threading,time\na,b=map(int,input().split())\ndef n():\n    time.sleep(1); print(a+b)\nthreading.Thread(target=n,daemon=True).start()",
        SUM,
        "incorrect",
    ),
    "thread raising is exit 0": (
        "import threading\na,b=map(int,input().split())\nprint(a+b)\ndef n(): 1/0\nthreading.Thread(target=n).start()",
        SUM,
        "correct",
    ),
    "multiprocessing": (
        "import multiprocessing as mp\ndef m(a,b): print(a+b,flush=True)\nif __name__=='__main__':\n    a,b=map(int,input().split())\n    p=mp.get_context('fork').Process(target=m,args=(a,b)); p.start()",
        SUM,
        "correct",
    ),
    "thread then sys.exit": (
        "import threading,sys\ndef m():\n    a,b=map(int,input().split())\n    print(a+b)\nthreading.Thread(target=m).start()\nsys.exit()",
        SUM,
        "correct",
    ),
}


@pytest.mark.parametrize("case", THREADS)
def test_threads_are_waited_for_as_python_does_at_its_end(case: str, options: code.CodeOptions) -> None:
    source, tests, right = THREADS[case]
    found, detail = verdict(f"```python\n{source}\n```\n", tests, options)
    assert found == right, detail


OBJECTS: dict[str, tuple[str, Any, str]] = {
    "minstack": (
        "class MinStack:\n    def __init__(self): self.s=[]\n    def push(self,x): self.s.append(x)\n    def pop(self): self.s.pop()\n    def top(self): return self.s[-1]\n    def getMin(self): return min(self.s)",
        "m=MinStack()\nm.push(-2);m.push(0);m.push(-3)\nassert m.getMin()==-3\nm.pop()\nassert m.top()==0\nassert m.getMin()==-2",
        "correct",
    ),
    "minstack wrong": (
        "class MinStack:\n    def __init__(self): self.s=[]\n    def push(self,x): self.s.append(x)\n    def pop(self): self.s.pop()\n    def top(self): return self.s[-1]\n    def getMin(self): return max(self.s)",
        "m=MinStack()\nm.push(-2);m.push(0);m.push(-3)\nassert m.getMin()==-3",
        "incorrect",
    ),
    "minstack missing": ("class Stack: pass", "m=MinStack()\nm.push(-2)\nassert m.getMin()==-2", "incorrect"),
    "attribute": (
        "class P:\n    def __init__(self,x): self.x=x",
        "p=P(3)\nassert p.x==3\np.x=5\nassert p.x==5",
        "correct",
    ),
    "eq objects": (
        "class V:\n    def __init__(s,x): s.x=x\n    def __eq__(s,o): return s.x==o.x\n    def __add__(s,o): return V(s.x+o.x)\n    def __repr__(s): return f'V({s.x})'\n    def __len__(s): return s.x",
        "assert V(1)+V(2)==V(3)\nassert repr(V(2))=='V(2)'\nassert len(V(4))==4\nassert V(1)!=V(2)",
        "correct",
    ),
    "always eq": ("class A:\n    def __eq__(s,o): return True\ndef f(x): return A()", "assert f(1)==42", "incorrect"),
    "always eq reflected": (
        "class A:\n    def __eq__(s,o): return True\n    def __sub__(s,o): return 0\n    def __lt__(s,o): return True\n    def __contains__(s,o): return True\ndef f(x): return A()",
        "assert 42 in f(1)",
        "incorrect",
    ),
    "sub cheat": (
        "class A:\n    def __sub__(s,o): return 0\n    def __rsub__(s,o): return 0\ndef f(x): return A()",
        "assert abs(f(1)-42)<1e-9",
        "incorrect",
    ),
    "closures": (
        "def adder(n):\n    return lambda x: x+n",
        "a=adder(2)\nassert a(3)==5\nassert adder(1)(1)==2",
        "correct",
    ),
    "callback": ("def apply(f,x):\n    return f(f(x))", "assert apply(lambda v: v*2, 3)==12", "correct"),
    "key builtin": (
        "def srt(a,key):\n    return sorted(a,key=key)",
        "assert srt(['bbb','a'],len)==['a','bbb']\nassert srt([2,1],key=lambda v:-v)==[2,1]",
        "correct",
    ),
    "isinstance": (
        "class A: pass\nclass B(A): pass\ndef mk(): return B()",
        "assert isinstance(mk(),A)\nassert not isinstance(A(),B)\nassert issubclass(B,A)\nassert isinstance(mk(),B)",
        "correct",
    ),
    "enum": (
        "from enum import Enum\nclass C(Enum):\n    R=1\n    G=2\ndef f(): return C.R",
        "assert f()==C.R\nassert f()!=C.G\nassert f() is C.R\nassert f().value==1",
        "correct",
    ),
    "dataclass": (
        "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n    y: int=0\ndef mk(a): return P(a)",
        "assert mk(2)==P(2,0)\nassert mk(2).x==2",
        "correct",
    ),
    "context manager": (
        "class C:\n    def __enter__(s): return 5\n    def __exit__(s,*a): return True",
        "with C() as v:\n    assert v==5\nwith C():\n    raise ValueError",
        "correct",
    ),
    "static on class": (
        "class M:\n    K=7\n    @staticmethod\n    def f(x): return x+1\n    @classmethod\n    def g(cls): return cls.K",
        "assert M.f(1)==2\nassert M.g()==7\nassert M.K==7",
        "correct",
    ),
    "hash": (
        "class V:\n    def __init__(s,x): s.x=x\n    def __eq__(s,o): return s.x==o.x\n    def __hash__(s): return hash(s.x)",
        "assert len({V(1),V(1)})==1 and hash(V(1))==hash(V(1))",
        "correct",
    ),
    "hash of results": (
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass P:\n    x: int\n    y: int\ndef nb(p): return {P(p.x+1,p.y),P(p.x,p.y+1)}",
        "assert nb(P(0,0))=={P(1,0),P(0,1)}",
        "correct",
    ),
    "hash of what is expected": (
        "class V:\n    def __eq__(s,o): return True\n    def __hash__(s): return hash(42)\ndef f(x): return V()",
        "assert f(1) in {42}",
        "incorrect",
    ),
    "no hash": (
        "class V:\n    def __eq__(s,o): return True",
        "try: hash(V())\nexcept TypeError: pass\nelse: assert False",
        "correct",
    ),
    "contains": (
        "class I:\n    def __init__(s,a,b): s.a,s.b=a,b\n    def __contains__(s,x): return s.a<=x<=s.b",
        "assert 5 in I(1,9)\nassert 10 not in I(1,9)",
        "correct",
    ),
    "contains and iter": (
        "class CI:\n    def __init__(s,w): s.w=w\n    def __iter__(s): return iter(s.w)\n    def __contains__(s,x): return x.lower() in s.w",
        "assert 'AB' in CI(['ab'])",
        "correct",
    ),
    "contains of a class for a function": (
        "class f:\n    def __init__(s,x): pass\n    def __contains__(s,o): return True",
        "assert 42 in f(1)",
        "incorrect",
    ),
    "in place operator": (
        "class A:\n    def __init__(s): s.l=[]\n    def __iadd__(s,x): s.l.append(x); return s",
        "a=A()\na+=3\nassert a.l==[3]",
        "correct",
    ),
    "in place operator of a result": (
        "class A:\n    def __isub__(s,o): return 0\ndef f(x): return A()",
        "x=f(1)\nx-=42\nassert abs(x)<1e-9",
        "incorrect",
    ),
    "unary": (
        "class A:\n    def __invert__(s): return 5\n    def __round__(s,n=None): return 6",
        "assert ~A()==5 and round(A())==6",
        "correct",
    ),
    "deepcopy": (
        "class A:\n    def __init__(s): s.x=1",
        "import copy\na=A()\nb=copy.deepcopy(a)\nb.x=2\nassert a.x==1 and copy.copy(a).x==1",
        "correct",
    ),
    "type": (
        "class A: pass\nclass B(A): pass\ndef f(): return A()",
        "assert type(f()) is A and type(f()) is not B and type(3) is int",
        "correct",
    ),
    "type wrong": ("class A: pass\nclass B(A): pass\ndef f(): return B()", "assert type(f()) is A", "incorrect"),
    "class of the tests": (
        "from abc import ABC,abstractmethod\nclass A(ABC):\n    @abstractmethod\n    def f(s): ...\n    def g(s): return s.f()*2",
        "class B(A):\n    def __init__(self,x): self.x=x\n    def f(self): return self.x\nassert B(4).g()==8 and isinstance(B(1),A) and issubclass(B,A)",
        "correct",
    ),
    "class of the tests that asks the one above": (
        "class A:\n    def __init__(s,x): s.x=x\n    def show(s): return f'{s.x} {s.area()}'",
        "class B(A):\n    def __init__(self,w):\n        super().__init__('b')\n        self.w=w\n    def area(self): return self.w**2\n    def show(self): return super().show()+'!'\nassert B(3).show()=='b 9!'\nclass C(list):\n    def append(self,x): super().append(x+1)\nc=C()\nc.append(1)\nassert c==[2]",
        "correct",
    ),
    "coroutine": (
        "async def f(x): return x+1",
        "import asyncio\nasync def main():\n    assert await asyncio.gather(f(1),f(2))==[2,3]\nasyncio.run(main())\nassert asyncio.run(f(1))==2",
        "correct",
    ),
    "coroutine wrong": ("async def f(x): return x", "import asyncio\nassert asyncio.run(f(1))==2", "incorrect"),
    "decorator": (
        "import functools\ndef memo(func):\n    c={}\n    @functools.wraps(func)\n    def inner(*a):\n        if a not in c: c[a]=func(*a)\n        return c[a]\n    return inner",
        "@memo\ndef sq(x): return x*x\nassert sq(3)==9 and sq.__name__=='sq'",
        "correct",
    ),
    "stream": ("def f(s): return s.read()", "import io\nassert f(io.StringIO('abc'))=='abc'", "correct"),
    "attributes of the tests' objects": (
        "def connect(n):\n    n.left.next=n.right\n    return n",
        "class Node:\n    def __init__(s,v,l=None,r=None): s.val,s.left,s.right,s.next=v,l,r,None\nn=Node(1,Node(2),Node(3))\nconnect(n)\nassert n.left.next is n.right",
        "correct",
    ),
    "operators of the tests' objects": (
        "def srt(a): return sorted(a)\ndef size(a): return len(a)",
        "class It:\n    def __init__(s,x): s.x=x\n    def __lt__(s,o): return s.x<o.x\n    def __len__(s): return s.x\nassert [i.x for i in srt([It(2),It(1)])]==[1,2] and size(It(4))==4",
        "correct",
    ),
    "types as arguments": (
        "def f(schema,v): return all(isinstance(v[k],t) for k,t in schema.items())\ndef conv(a,t): return [t(x) for x in a]",
        "assert f({'a':int,'b':str},{'a':1,'b':'x'}) and conv(['1'],int)==[1]",
        "correct",
    ),
    "context manager of a generator": (
        "from contextlib import contextmanager\n@contextmanager\ndef quiet():\n    try: yield 5\n    except ValueError: pass",
        "with quiet() as v:\n    assert v==5\n    raise ValueError",
        "correct",
    ),
    "output": (
        "def f(x): print('hi')",
        "import io,contextlib\nb=io.StringIO()\nwith contextlib.redirect_stdout(b): f(1)\nassert b.getvalue()=='hi\\n'",
        "correct",
    ),
    "output wrong": (
        "def f(x): print('ho')",
        "import io,contextlib\nb=io.StringIO()\nwith contextlib.redirect_stdout(b): f(1)\nassert b.getvalue()=='hi\\n'",
        "incorrect",
    ),
    "input": (
        "def f(): return int(input())+1",
        "import io\nfrom unittest.mock import patch\nwith patch('builtins.input',return_value='4'): assert f()==5\nwith patch('sys.stdin',io.StringIO('4\\n')): assert f()==5",
        "correct",
    ),
    "warning": (
        "import warnings\ndef f(x):\n    if x: warnings.warn('old',DeprecationWarning)\n    return 1",
        "import unittest\nclass T(unittest.TestCase):\n    def test(self):\n        with self.assertWarns(DeprecationWarning): self.assertEqual(f(1),1)",
        "correct",
    ),
    "filters of warnings": (
        "import warnings\ndef strict(): warnings.simplefilter('error')\ndef f(): warnings.warn('old')",
        "strict()\ntry: f()\nexcept UserWarning: pass\nelse: assert False",
        "correct",
    ),
    "warning lacking": (
        "import warnings\ndef f(x):\n    if x: warnings.warn('old',DeprecationWarning)\n    return 1",
        "import unittest\nclass T(unittest.TestCase):\n    def test(self):\n        with self.assertWarns(DeprecationWarning): self.assertEqual(f(0),1)",
        "incorrect",
    ),
}


@pytest.mark.parametrize("case", OBJECTS)
def test_objects_of_the_program_behave_as_in_one_process(case: str, options: code.CodeOptions) -> None:
    source, tests, right = OBJECTS[case]
    found, detail = verdict(f"```python\n{source}\n```\n", tests, options)
    assert found == right, detail


EXCEPTIONS: dict[str, tuple[str, Any, str]] = {
    "unittest raises": (
        "def f(x):\n    if x<0: raise ValueError('neg')\n    return x",
        "import unittest\nclass T(unittest.TestCase):\n    def test(self):\n        with self.assertRaises(ValueError): f(-1)\n        self.assertEqual(f(2),2)\nif __name__=='__main__': unittest.main()",
        "correct",
    ),
    "wrong type": ("def f(x): raise TypeError('x')", "try:\n    f(-1)\nexcept ValueError:\n    pass", "incorrect"),
    "message": (
        "def f(x): raise KeyError('k')",
        "try:\n    f(-1)\n    assert False\nexcept KeyError as e:\n    assert e.args==('k',)\n    assert str(e)==\"'k'\"",
        "correct",
    ),
    "own class": (
        "class MyErr(ValueError):\n    def __init__(s,m,code): super().__init__(m); s.code=code\ndef f(x): raise MyErr('no',7)",
        "try:\n    f(1)\n    raise AssertionError\nexcept MyErr as e:\n    assert e.code==7 and str(e)=='no'\ntry: f(1)\nexcept ValueError: pass",
        "correct",
    ),
    "os._exit in try": ("import os\ndef f(x): os._exit(0)", "try:\n    f(1)\nexcept Exception:\n    pass", "incorrect"),
    "zero div uncaught": ("def f(x): return 1/x", "assert f(0)==1", "incorrect"),
    "lookup base": ("def f(x): return [][0]", "try: f(0)\nexcept LookupError: pass\nelse: assert False", "correct"),
    "two of one name": (
        "import struct,re\ndef f(): struct.unpack('I',b'')\ndef g(): re.compile('(')",
        "import struct,re\ntry: f()\nexcept struct.error: pass\ntry: g()\nexcept re.error: pass",
        "correct",
    ),
    "one for another of its name": (
        "import struct,re\ndef f(): struct.unpack('I',b'')\ndef g(): re.compile('(')",
        "import struct,re\nfor h in (f,g):\n    try: h()\n    except struct.error: pass",
        "incorrect",
    ),
    "the tests' own through the program": (
        "def retry(f,n):\n    for i in range(n):\n        try: return f()\n        except Exception as e: last=e\n    raise last",
        "class MyErr(Exception): pass\nmine=MyErr('x')\ndef bad(): raise mine\ntry:\n    retry(bad,2)\n    assert False\nexcept MyErr as e: assert e is mine",
        "correct",
    ),
    "attributes of the tests' own": (
        "def f(g):\n    try: g()\n    except Exception as e: return e.code",
        "class MyErr(Exception):\n    def __init__(self,code): self.code=code\ndef bad(): raise MyErr(7)\nassert f(bad)==7",
        "correct",
    ),
    "a class of the tests'": (
        "def retry(f,n,kinds):\n    for i in range(n):\n        try: return f()\n        except kinds: pass\n    raise kinds('spent')",
        "class MyErr(Exception): pass\ndef bad(): raise MyErr\ntry:\n    retry(bad,2,MyErr)\n    assert False\nexcept MyErr as e: assert str(e)=='spent'",
        "correct",
    ),
    "derived in the tests": (
        "class E(Exception): pass\ndef f(cb): cb()",
        "class F(E): pass\ndef cb(): raise F('a')\ntry: f(cb)\nexcept E as e: assert str(e)=='a'\nelse: assert False",
        "correct",
    ),
    "StopIteration of a method": (
        "class It:\n    def __init__(s,a): s.a=list(a)\n    def next(s):\n        if not s.a: raise StopIteration\n        return s.a.pop(0)",
        "import unittest\nclass T(unittest.TestCase):\n    def test(self):\n        i=It([1]); out=[]\n        while True:\n            try: out.append(i.next())\n            except StopIteration: break\n        self.assertEqual(out,[1])\n        with self.assertRaises(StopIteration): i.next()\n        self.assertRaises(StopIteration, i.next)",
        "correct",
    ),
    "parts of Python's": (
        "import json,sys\ndef f(): sys.exit(3)\ndef g():\n    yield 1\n    return 5\ndef h(s): return json.loads(s)\ndef k(s): return s.decode()\ndef o(): open('/nosuch')",
        "import json\ntry: f()\nexcept SystemExit as e: assert e.code==3\ni=g(); next(i)\ntry: next(i)\nexcept StopIteration as e: assert e.value==5\ntry: h('{')\nexcept json.JSONDecodeError as e: assert e.pos==1\ntry: k(b'\\xff')\nexcept UnicodeDecodeError as e: assert e.reason=='invalid start byte' and e.start==0\ntry: o()\nexcept OSError as e: assert e.errno==2 and e.filename=='/nosuch'",
        "correct",
    ),
    "cause": (
        "def f():\n    try: {}[1]\n    except KeyError as e: raise ValueError('x') from e",
        "try: f()\nexcept ValueError as e: assert isinstance(e.__cause__,KeyError)",
        "correct",
    ),
}


@pytest.mark.parametrize("case", EXCEPTIONS)
def test_exceptions_keep_their_type_and_words(case: str, options: code.CodeOptions) -> None:
    source, tests, right = EXCEPTIONS[case]
    found, detail = verdict(f"```python\n{source}\n```\n", tests, options)
    assert found == right, detail


RESULTS: dict[str, tuple[str, Any, str]] = {
    "generator lazily": (
        "def g():\n    n=0\n    while True:\n        yield n; n+=1",
        "import itertools\nassert list(itertools.islice(g(),3))==[0,1,2]\ni=g()\nassert next(i)==0 and next(i)==1",
        "correct",
    ),
    "filter sorted": (
        "def h(a): return filter(None,a)",
        "assert sorted(h([2,0,1]))==[1,2]\nassert sum(h([1,2]))==3",
        "correct",
    ),
    "map equals list is wrong": ("def h(a): return map(int,a)", "assert h(['1'])==[1]", "incorrect"),
    "exhausted": ("def h(a): return iter(a)", "i=h([1])\nassert list(i)==[1]\nassert list(i)==[]", "correct"),
    "keys": ("def h(): return {1:2}.keys()", "assert h()=={1}\nassert 1 in h()\nassert len(h())==1", "correct"),
    "deque eq list wrong": (
        "from collections import deque\ndef h(): return deque([1])",
        "assert h()==[1]",
        "incorrect",
    ),
    "deque popleft": (
        "from collections import deque\ndef h(): return deque([1,2])",
        "d=h()\nassert d.popleft()==1 and len(d)==1\nfrom collections import deque\nassert h()==deque([1,2])",
        "correct",
    ),
    "Counter": (
        "from collections import Counter\ndef h(s): return Counter(s)",
        "assert h('aab')=={'a':2,'b':1}\nassert h('aab').most_common(1)==[('a',2)]",
        "correct",
    ),
    "namedtuple attr": (
        "from collections import namedtuple\nP=namedtuple('P','x y')\ndef h(): return P(1,2)",
        "assert h().x==1 and h()==(1,2) and h()==P(1,2)",
        "correct",
    ),
    "date": (
        "import datetime\ndef h(): return datetime.date(2020,1,2)",
        "import datetime\nassert h()==datetime.date(2020,1,2)",
        "correct",
    ),
    "defaultdict": (
        "from collections import defaultdict\ndef f(): return defaultdict(list)\ndef g(): return defaultdict(lambda: 7)",
        "assert f()['x']==[] and g()['x']==7",
        "correct",
    ),
    "iterator without end": ("def f(n):\n    while True: yield 1", "assert list(f(3))==[1,1,1]", "incorrect"),
    "a file that a result names": (
        "def f(x): return '/nope'",
        "with open(f(3)) as file: assert file.read()=='a'",
        "incorrect",
    ),
    "an expression that does not parse": ("def f(x): return '('", "assert eval(f(3))==3", "incorrect"),
    "an expression of unknown names": ("def f(x): return 'zzz'", "assert eval(f(3))==3", "incorrect"),
}


@pytest.mark.parametrize("case", RESULTS)
def test_results_behave_as_in_one_process(case: str, options: code.CodeOptions) -> None:
    source, tests, right = RESULTS[case]
    found, detail = verdict(f"```python\n{source}\n```\n", tests, options)
    assert found == right, detail


IN_PLACE: dict[str, tuple[str, Any, str]] = {
    "nested": (
        "def f(m):\n    for r in m: r.reverse()",
        "m=[[1,2],[3,4]]\nr=m[0]\nassert f(m) is None\nassert m==[[2,1],[4,3]] and r==[2,1]",
        "correct",
    ),
    "reordered rows": (
        "def f(m): m.sort()",
        "a=[3]\nm=[a,[1]]\nf(m)\nassert m==[[1],[3]] and a==[3] and m[1] is a",
        "correct",
    ),
    "returns same": ("def f(d):\n    d.append(1)\n    return d", "d=[]\nassert f(d) is d\nassert d==[1]", "correct"),
    "must not change": ("def f(d):\n    d.sort()\n    return d", "d=[2,1]\nf(d)\nassert d==[2,1]", "incorrect"),
    "unchanged": ("def f(d): return sorted(d)", "d=[2,1]\nassert f(d)==[1,2]\nassert d==[2,1]", "correct"),
    "matrix rotate": (
        "class Solution:\n    def rotate(self,m): m[:]=[list(r) for r in zip(*m[::-1])]",
        "m=[[1,2],[3,4]]\nSolution().rotate(m)\nassert m==[[3,1],[4,2]]",
        "correct",
    ),
    "beside a node of the tests' own class": (
        "def f(a,b,h): a.append(1)",
        "class ListNode:\n    def __init__(s,val=0,next=None): s.val,s.next=val,next\na,b=[],[]\nf(a,b,ListNode(1))\nassert a==[1] and b==[]",
        "correct",
    ),
    "the wrong list beside such a node": (
        "def f(a,b,h): b.append(1)",
        "class ListNode:\n    def __init__(s,val=0,next=None): s.val,s.next=val,next\na,b=[],[]\nf(a,b,ListNode(1))\nassert a==[1] and b==[]",
        "incorrect",
    ),
    "nodes of the tests' own class": (
        "class Solution:\n    def double(self,h):\n        while h: h.val*=2; h=h.next",
        "class ListNode:\n    def __init__(s,val=0,next=None): s.val,s.next=val,next\nh=ListNode(1,ListNode(2))\nSolution().double(h)\nassert h.val==2 and h.next.val==4",
        "correct",
    ),
    "nodes in a circle": (
        "class Solution:\n    def hasCycle(self,h):\n        seen=set()\n        while h:\n            if h in seen: return True\n            seen.add(h); h=h.next\n        return False",
        "h=ListNode(1);h.next=ListNode(2);h.next.next=h\nassert Solution().hasCycle(h) is True\nassert Solution().hasCycle(list_node([1,2])) is False",
        "correct",
    ),
    "a node of two lists": (
        "class Solution:\n    def getIntersectionNode(self,a,b):\n        s=set()\n        while a: s.add(a); a=a.next\n        while b:\n            if b in s: return b\n            b=b.next",
        "c=ListNode(8)\na=ListNode(4,c);b=ListNode(5,c)\nassert Solution().getIntersectionNode(a,b) is c",
        "correct",
    ),
    "nodes of a tree by identity": (
        "class Solution:\n    def lca(self,r,p,q):\n        if r is None or r is p or r is q: return r\n        a=self.lca(r.left,p,q);b=self.lca(r.right,p,q)\n        return r if a and b else a or b",
        "r=tree_node([3,5,1])\nassert Solution().lca(r,r.left,r.right) is r",
        "correct",
    ),
    "a defaultdict": (
        "def f(d): d['a']+=1",
        "from collections import defaultdict\nd=defaultdict(int)\nf(d)\nassert d['a']==1",
        "correct",
    ),
    "an array": (
        "def f(a): a.sort()",
        "import numpy as np\na=np.array([3,1,2])\nf(a)\nassert a.tolist()==[1,2,3]",
        "correct",
    ),
}


@pytest.mark.parametrize("case", IN_PLACE)
def test_arguments_are_changed_in_place_as_in_one_process(case: str, options: code.CodeOptions) -> None:
    source, tests, right = IN_PLACE[case]
    found, detail = verdict(f"```python\n{source}\n```\n", tests, options)
    assert found == right, detail


AT_FAULT: dict[str, tuple[str, Any, str]] = {
    "check never called": ("def f(a): return a+1", "def check(candidate):\n    assert candidate(1)==2\n", "error"),
    "check called": ("def f(a): return a+1", "def check(candidate):\n    assert candidate(1)==2\ncheck(f)", "correct"),
    "check called wrong": (
        "def f(a): return a",
        "def check(candidate):\n    assert candidate(1)==2\ncheck(f)",
        "incorrect",
    ),
    "check(candidate)": (
        "def f(a): return a+1",
        "def check(candidate):\n    assert candidate(1)==2\ncheck(candidate)",
        "correct",
    ),
    "check missing fn": (
        "def g(a): return a+1",
        "def check(candidate):\n    assert candidate(1)==2\ncheck(f)",
        "incorrect",
    ),
    "check Solution().f": (
        "class Solution:\n    def f(self,a): return a+1",
        "def check(candidate):\n    assert candidate(1)==2\ncheck(Solution().f)",
        "correct",
    ),
    "empty tests": ("def f(a): return a+1", "", "error"),
    "missing module": ("def f(a): return a+1", "import nosuchmodule_x\nassert f(1)==2", "error"),
    "undefined var": ("def f(a): return a+1", "assert f(undefined_thing)==2", "error"),
    "unittest no methods": (
        "def f(a): return a+1",
        "import unittest\nclass T(unittest.TestCase): pass\nunittest.main()",
        "error",
    ),
    "unittest no main": (
        "def f(a): return a+1",
        "import unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(f(1),3)",
        "incorrect",
    ),
    "unittest setUp": (
        "def f(a): return a+1",
        "import unittest\nclass T(unittest.TestCase):\n    def setUp(self): self.x=1\n    def test(self): self.assertEqual(f(self.x),2)\n    def test2(self): self.assertEqual(f(2),3)\nif __name__=='__main__':\n    unittest.main(argv=[''],exit=False)",
        "correct",
    ),
    "from unittest import": (
        "def f(a): return a+1",
        "from unittest import TestCase, main\nclass T(TestCase):\n    def test(self): self.assertEqual(f(1),2)\nmain()",
        "correct",
    ),
    "import solution": ("def f(a): return a+1", "import solution\nassert solution.f(1)==2", "correct"),
    "import star": ("def f(a): return a+1", "from solution import *\nassert f(1)==2", "correct"),
    "import missing": ("def f(a): return a+1", "from solution import g\nassert g(1)==2", "incorrect"),
    "import Solution": (
        "class Solution:\n    def f(self,a): return a+1",
        "from solution import Solution\nassert Solution().f(1)==2",
        "correct",
    ),
    "pytest function": ("def f(a): return a+1", "from solution import f\ndef test_f():\n    assert f(1)==2\n", "error"),
    "test function called": ("def f(a): return a+1", "def test_f():\n    assert f(1)==2\ntest_f()", "correct"),
    "sys.exit ok": ("def f(a): return a+1", "import sys\nassert f(1)==2\nsys.exit(0)", "correct"),
    "main guard": ("def f(a): return a+1", "if __name__ == '__main__':\n    assert f(1)==2", "correct"),
    "name error in helper": (
        "class Solution:\n    def f(self,a): return a+1",
        "assert close(Solution().f(1),2)",
        "error",
    ),
    "zero division by tests": ("def f(a): return a+1", "x=1/0\nassert f(1)==2", "error"),
    "an object before a pytest function": (
        "class Solution:\n    def f(self,x): return 0",
        "from solution import Solution\nsol=Solution()\ndef test_1():\n    assert sol.f(1)==2\n",
        "error",
    ),
    "a call before a check that nobody calls": (
        "def f(x): return 0",
        "warm=f(0)\ndef check(candidate):\n    assert candidate(1)==2",
        "error",
    ),
    "a call before a check of the row": (
        "def f(x): return 0",
        {
            "kind": "functional",
            "code": "warm=f(0)\ndef check(candidate):\n    assert candidate(1)==2",
            "entry_point": "f",
        },
        "incorrect",
    ),
    "a class of pytest": (
        "def f(x): return 0",
        "warm=f(0)\nclass TestF:\n    def test_1(self): assert f(1)==2",
        "error",
    ),
    "test functions called in a loop": (
        "def f(x): return x+1",
        "def test_a(): assert f(1)==2\ndef test_b(): assert f(2)==3\nfor test in (test_a,test_b): test()",
        "correct",
    ),
    "test functions called by their decorator": (
        "def f(x): return x+1",
        "def now(test): test()\n@now\ndef test_a(): assert f(1)==2",
        "correct",
    ),
    "a file that the tests lack, of which the program is asked": (
        "def f(x): return 1",
        "assert f('')==1\nwith open('/nosuch') as file:\n    assert f(file.read())==1",
        "error",
    ),
    "a file that the tests lack": (
        "def f(x): return 1",
        "assert f(3)\nwith open('/nosuch') as file: assert file.read()=='a'",
        "error",
    ),
}


@pytest.mark.parametrize("case", AT_FAULT)
def test_tests_that_ask_nothing_or_fail_by_themselves_are_an_error(case: str, options: code.CodeOptions) -> None:
    source, tests, right = AT_FAULT[case]
    found, detail = verdict(f"```python\n{source}\n```\n", tests, options)
    assert found == right, detail


NAMES: dict[str, tuple[str, Any, str]] = {
    "lcm missing": ("def f(a,b): return a*b", "assert lcm(4,6)==12", "incorrect"),
    "sum own wrong": ("def sum(a,b): return a-b", "assert sum(2,3)==5", "incorrect"),
    "sum lacking": ("def summe(a,b): return a+b", "assert sum(2,3)==5", "incorrect"),
    "merge": ("def merge(a,b): return sorted(a+b)", "assert merge([2],[1])==[1,2]", "correct"),
    "merge lacking": ("def g(a,b): return sorted(a+b)", "assert list(merge([2],[3]))==[2,3]", "incorrect"),
    "all replaced": (
        "def all(x): return True\ndef f(x): return 0",
        "assert all(f(i)==i+7 for i in range(3))",
        "incorrect",
    ),
    "imported gcd": ("from math import gcd", "assert gcd(12,18)==6", "correct"),
    "isclose helper": (
        "def area(r): return 3.14159*r*r",
        "import math\nassert math.isclose(area(1),3.14159)",
        "correct",
    ),
    "math unimported": ("def area(r): return 3.14159*r*r", "assert math.isclose(area(1),3.14159)", "correct"),
    "variable": ("ANSWER=42", "assert ANSWER==42", "correct"),
    "call kind gcd missing": (
        "def g(a,b): return 1",
        {"kind": "call", "fn_name": "gcd", "inputs": [[12, 18]], "outputs": [6]},
        "incorrect",
    ),
    "prelude helper replaced": (
        "class Counter:\n    def __init__(s,*a): pass\n    def __eq__(s,o): return True\nclass Solution:\n    def f(self): return [9]",
        "assert Counter(Solution().f())==Counter([1])",
        "incorrect",
    ),
    "imported beside all": (
        "def all(x): return True\ndef f(x): return 0",
        "from solution import f\nassert all(f(i)==i+7 for i in range(3))",
        "incorrect",
    ),
    "imported beside abs": (
        "def abs(x): return 0\ndef f(x): return 0",
        "from solution import f\nassert abs(f(1)-42)<1e-9",
        "incorrect",
    ),
    "imported class beside set": (
        "def set(x): return 0\nclass Solution:\n    def f(self): return 0",
        "from solution import Solution\nassert set(Solution().f())==set([1,2])",
        "incorrect",
    ),
    "imported as a module beside abs": (
        "def abs(x): return 0\ndef f(x): return 0",
        "import solution\nassert abs(solution.f(1)-42)<1e-9",
        "incorrect",
    ),
    "imported with all names beside all": (
        "def all(x): return True\ndef f(x): return 0",
        "from solution import *\nassert all(f(i)==i+7 for i in range(3))",
        "incorrect",
    ),
    "imported beside range": (
        "def range(x): return []\ndef f(x): return 0",
        "from solution import f\nfor i in range(3): assert f(i)==3",
        "incorrect",
    ),
    "unittest beside sorted": (
        "def sorted(x): return 0\ndef f(x): return 0",
        "from solution import f\nimport unittest\nclass T(unittest.TestCase):\n    def test(self):\n        self.assertEqual(sorted(f(1)), sorted([3,4]))",
        "incorrect",
    ),
    "check of the row beside abs": (
        "def abs(x): return 0\ndef f(x): return 0",
        {
            "kind": "functional",
            "code": "def check(candidate):\n    assert abs(candidate(1)-42)<1e-6",
            "entry_point": "f",
        },
        "incorrect",
    ),
    "check of the row beside all": (
        "def all(x): return True\ndef f(x): return 0",
        {
            "kind": "functional",
            "code": "def check(candidate):\n    assert all(candidate(i)==i+7 for i in range(3))",
            "entry_point": "f",
        },
        "incorrect",
    ),
    "check of the row beside isclose": (
        "def isclose(a,b): return True\ndef f(x): return 0",
        {"kind": "functional", "code": "def check(fn):\n    assert isclose(fn(1),3.)", "entry_point": "f"},
        "incorrect",
    ),
    "sorted of the row": (
        "def sorted(x): return x",
        {
            "kind": "functional",
            "code": "def check(candidate):\n    assert candidate([2,1])==[1,2]",
            "entry_point": "sorted",
        },
        "incorrect",
    ),
    "sorted imported": (
        "def sorted(x): return x",
        "from solution import sorted\nassert sorted([2,1])==[1,2]",
        "incorrect",
    ),
    "sorted imported right": (
        "def sorted(x):\n    x=list(x); x.sort(); return x",
        "from solution import sorted\nassert sorted([2,1])==[1,2]",
        "correct",
    ),
    "gcd imported": ("def gcd(a,b): return 1", "from solution import gcd\nassert gcd(12,18)==6", "incorrect"),
    "add beside multiply": (
        "def add(a,b): return a+b\ndef multiply(a,b): return a*b",
        "assert add(2,3)==5\nassert multiply(add(1,2),3)==9",
        "correct",
    ),
    "add wrong beside multiply": (
        "def add(a,b): return a-b\ndef multiply(a,b): return a*b",
        "assert add(2,3)==5\nassert multiply(2,3)==6",
        "incorrect",
    ),
    "add wrong in unittest beside multiply": (
        "def add(a,b): return a-b\ndef multiply(a,b): return a*b",
        "import unittest\nclass T(unittest.TestCase):\n    def test(self):\n        self.assertEqual(multiply(2,3),6)\n        self.assertEqual(add(2,3),5)",
        "incorrect",
    ),
    "loads of what encode gives": (
        "def encode(l): return ','.join(l)\ndef loads(s): return s.split(',')",
        "assert loads(encode(['a','b']))==['a','b']",
        "correct",
    ),
    "loads of what dumps gives": (
        "def dumps(l): return ','.join(l)\ndef loads(s): return s.split(',')",
        "assert loads(dumps(['a','b']))==['a','b']\nassert dumps(['a'])=='a'",
        "correct",
    ),
    "loads of what dumps gives, wrong": (
        "def dumps(l): return ','.join(l)\ndef loads(s): return s",
        "assert loads(dumps(['a','b']))==['a','b']",
        "incorrect",
    ),
    "isclose of what it is told": (
        "def isclose(a,b): return True\ndef area(r): return 0",
        "def check(found): return isclose(found,3.14)\nassert check(area(1))",
        "incorrect",
    ),
    "Counter replaced in a comparison of the tests": (
        "class Counter:\n    def __init__(s,*a): pass\n    def __eq__(s,o): return True\ndef f(x): return [9]",
        "def same(a,b): return Counter(a)==Counter(b)\nassert same(f(1),[1])",
        "incorrect",
    ),
    "sorted beside merge": (
        "def sorted(x): return [1,2]\ndef merge(a,b): return 0",
        "assert sorted(merge([2],[1]))==[1,2]",
        "incorrect",
    ),
    "Counter replaced": (
        "class Counter:\n    def __init__(s,*a): pass\n    def __eq__(s,o): return True\ndef f(x): return [9]",
        "assert Counter(f(1))==Counter([1])",
        "incorrect",
    ),
    "Counter replaced by way of variables": (
        "class Counter:\n    def __init__(s,*a): pass\n    def __eq__(s,o): return True\ndef f(x): return [9]",
        "r=f(1)\nwant=Counter([1])\nassert Counter(r)==want",
        "incorrect",
    ),
    "Counter replaced in a function": (
        "class Counter:\n    def __init__(s,*a): pass\n    def __eq__(s,o): return True\ndef f(x): return [9]",
        "def norm(x): return Counter(x)\nassert norm(f(1))==norm([1])",
        "incorrect",
    ),
    "Counter compared with a result": (
        "class Counter:\n    def __init__(s,*a): pass\n    def __eq__(s,o): return True\ndef f(x): return Counter()",
        "assert f(1)==Counter([1])",
        "incorrect",
    ),
    "math replaced": (
        "class math:\n    isclose=staticmethod(lambda a,b: True)\ndef area(r): return 0",
        "assert math.isclose(area(1),3.14159)",
        "incorrect",
    ),
    "permutations replaced": (
        "def permutations(x): return []\ndef f(x): return 0",
        "for p in permutations([1,2]):\n    assert f(p)==3",
        "incorrect",
    ),
}


@pytest.mark.parametrize("case", NAMES)
def test_tests_reach_the_program_s_own_names_and_no_others_of_that_name(case: str, options: code.CodeOptions) -> None:
    source, tests, right = NAMES[case]
    found, detail = verdict(f"```python\n{source}\n```\n", tests, options)
    assert found == right, detail


ANNOTATIONS: dict[str, tuple[str, Any, str]] = {
    "annotation NameError": ("def f(x: Undefined): return x", "assert f(1)==1", "incorrect"),
    "annotation stdin": ("def f(x: Undefined): return x\na,b=map(int,input().split())\nprint(a+b)", SUM, "incorrect"),
    "reads annotations": ("def f(x: int): return f.__annotations__['x'] is int", "assert f(1) is True", "correct"),
    "typed dataclass": (
        "from dataclasses import dataclass, fields\n@dataclass\nclass D:\n    a: int\ndef f(x): return fields(D)[0].type is int",
        "assert f(1)",
        "correct",
    ),
    "own future": (
        "from __future__ import annotations\ndef f(x: Undefined): return f.__annotations__['x']",
        "assert f(1)=='Undefined'",
        "correct",
    ),
}


@pytest.mark.parametrize("case", ANNOTATIONS)
def test_annotations_are_read_as_python_reads_them(case: str, options: code.CodeOptions) -> None:
    source, tests, right = ANNOTATIONS[case]
    found, detail = verdict(f"```python\n{source}\n```\n", tests, options)
    assert found == right, detail


CALLS: dict[str, tuple[str, Any, str]] = {
    "property not fn": (
        "class Solution:\n    f=3",
        {"kind": "call", "fn_name": "f", "inputs": [[1]], "outputs": [1]},
        "incorrect",
    ),
    "numpy array for list": (
        "import numpy as np\ndef f(a): return np.array(a)",
        {"kind": "call", "fn_name": "f", "inputs": [[[1, 2]]], "outputs": [[1, 2]]},
        "incorrect",
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_calls_of_what_is_no_function_of_that_kind_fail(case: str, options: code.CodeOptions) -> None:
    source, tests, right = CALLS[case]
    found, detail = verdict(f"```python\n{source}\n```\n", tests, options)
    assert found == right, detail


def test_a_response_of_many_unfinished_fences_is_read_in_time_by_its_length() -> None:
    text = "```python\n" + "x = (```\n" * 20_000
    assert program_of(text) is not None
    assert program_of("a" * 1_000_000 + " ```" * 3) is None


HOSTILE: dict[str, tuple[str, str]] = {
    "the frame of a generator that it is given": (
        "def f(g): return g.gi_frame.f_globals['answer']",
        "answer = 42\nassert f(x for x in [1]) == answer",
    ),
    "the globals of a function that it is given": (
        "def f(g): return g.__globals__['answer']",
        "answer = 42\nassert f(lambda x: x) == answer",
    ),
    "a test skipped": (
        "import unittest\ndef f(x): raise unittest.SkipTest",
        "import unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(f(1), 2)",
    ),
    "a loop ended": (
        "def f(x): raise StopIteration",
        "for found, expected in zip(map(f, [1, 2]), [2, 3]):\n    assert found == expected",
    ),
    "an end without an error": ("def f(x): raise SystemExit(0)", "assert f(1) == 2"),
    "a program that is gone": ("import os\ndef f(x): os._exit(0)", "try: f(1)\nexcept BaseException: pass"),
    "one exception for another": (
        "class ValueError(BaseException): pass\ndef f(x): raise ValueError",
        "import unittest\nclass T(unittest.TestCase):\n    def test(self):\n        with self.assertRaises(ValueError): f(1)\n        self.assertEqual(f(2), 3)",
    ),
    "the checker replaced in its own process": (
        "import sys\ndef f(x):\n    import unittest\n    unittest.TestCase.assertEqual = lambda *a: None\n    return 0",
        "import unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(f(1), 2)",
    ),
    "an assertion in a with": (
        "class C:\n    def __enter__(s): return s\n    def __exit__(s,*a): return True\n    def get(s): return 0",
        "with C() as c:\n    assert c.get() == 5",
    ),
    "an assertion in a with of a generator": (
        "from contextlib import contextmanager\n@contextmanager\ndef quiet():\n    try: yield 0\n    except BaseException: pass",
        "with quiet() as c:\n    assert c == 5",
    ),
    "the words of an assertion in a with": (
        "class C:\n    said = 0\n    def __enter__(s): return s\n    def __exit__(s,t,e,tb): C.said = int(str(e).split()[-1]); return True\n    def get(s): return C.said",
        "import unittest\nclass T(unittest.TestCase):\n    def test(self):\n        try:\n            with C() as c: self.assertEqual(c.get(), 5)\n        except AssertionError: pass\n        self.assertEqual(c.get(), 5)",
    ),
    "an assertion in a function that it is given": (
        "def f(g):\n    try: g(0)\n    except BaseException: pass",
        "def g(x): assert x == 5\nf(g)",
    ),
    "a loop ended under a try": (
        "def f(x): raise StopIteration",
        "try:\n    for found, expected in zip(map(f, [1, 2]), [2, 3]): assert found == expected\nexcept StopIteration: raise",
    ),
    "a method of an object that it is given": (
        "def f(n): n.check = print",
        "class N:\n    x = 1\n    def check(self, v): assert self.x == v\nn = N()\nf(n)\nn.check(2)",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_program_learns_nothing_of_its_tests_and_ends_none(case: str, options: code.CodeOptions) -> None:
    source, tests = HOSTILE[case]
    found, detail = verdict(f"```python\n{source}\n```", tests, options)
    assert found == "incorrect", detail


# Public sets


def rows_of_data(name: str) -> list[dict[str, Any]]:
    path = Path(os.environ.get("TRD_DATA", Path(__file__).parent.parent.parent / "shared" / "data"), name)
    if not path.is_file():
        pytest.skip(f"no {path}: set TRD_DATA")
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in data.splitlines()]


def test_public_cases_of_programs_get_the_verdicts_they_are_labelled_with(options: code.CodeOptions) -> None:
    cases = [row for row in rows_of_data("grading/public_cases.jsonl") if "tests" in row]
    assert len(cases) == 71
    found = {row["case"]: (row["right"], *verdict(row["response"], row["tests"], options)) for row in cases}
    assert {case: each for case, each in found.items() if each[0] != each[1]} == {}


@pytest.mark.parametrize(("file", "step"), [("HumanEvalPlus", 4), ("MbppPlus", 12)])
def test_references_pass_the_test_programs_of_their_own_sets_and_empty_functions_fail(
    file: str, step: int, options: code.CodeOptions
) -> None:
    wrong = {}
    for task in rows_of_data(f"benchmarks/{file}.jsonl.gz")[::step]:
        name = task["entry_point"]
        tests = task.get("assertion") or f"{task['test']}\ncheck({name})\n"
        programs = {
            "correct": task["prompt"] + task["canonical_solution"],
            "incorrect": f"def {name}(*given):\n    return None\n",
        }
        for right, source in programs.items():
            found = verdict(f"```python\n{source}\n```", tests, options)
            if found[0] != right:
                wrong[task["task_id"], right] = found
    assert wrong == {}


def test_the_row_may_say_with_what_a_check_is_called(options: code.CodeOptions) -> None:
    tests = {"kind": "functional", "code": "def check(candidate):\n    assert candidate(1) == 2\n", "entry_point": "f"}
    for source, right in (("def f(x): return x + 1", "correct"), ("def f(x): return x", "incorrect")):
        assert verdict(f"```python\n{source}\n```", tests, options)[0] == right
    assert verdict("```python\ndef g(x): return x + 1\n```", tests, options)[0] == "incorrect"
