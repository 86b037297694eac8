"""Equality of answers, kind by kind: one table a kind of answer, and public cases.

A line of a table is `= reference | answer`, or `!= reference | answer` for an answer that is wrong.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from trd_cli.graders import math
from trd_cli.graders.base import Question

DATA = Path(os.environ.get("TRD_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))

KINDS = {
    "root signs": r"""
= 3\sqrt{7} | 3√7
= \sqrt[3]{5} | ∛5
= \sqrt{x+1} | √(x+1)
!= 7 | √49x
= 7 | √49
!= 13 | 1√3
= 2\sqrt{2}+1 | 1+2√2
= \frac{\sqrt{3}}{2} | (√3)/2
= 2\sqrt{3}+\sqrt{2} | 2√3+√2
= \frac{1+\sqrt5}{2} | (1+√5)/2
= \sqrt{2\pi} | √(2π)
= 10\sqrt{3} | 10√3 cm
= \frac{1}{\sqrt{2}} | 1/√2
!= 4 | √4+1
= \sqrt[3]{2} | 2^(1/3)
= \sqrt[3]{2} | cbrt(2)
""",
    "source text": r"""
= \frac{2\pi}{3} | 2pi/3
= \frac{\sqrt3}{2} | sqrt(3)/2
= \log_2 5 | log_2(5)
= e^{x} | exp(x)
= x^{3}-2x | x**3 - 2*x
= \frac{1}{x+1} | 1/(x+1)
= \sin^2 x | sin(x)**2
= \sqrt{17} | 17**0.5
= 2.5e-5 | 2.5 \times 10^{-5}
= 0.000025 | 2.5e-5
= 3\times 10^8 | 3e8
!= 3\times 10^8 | 3e9
= \infty | +∞
= |x-2| | abs(x-2)
= \theta | theta
= \lfloor x \rfloor | floor(x)
= \frac{3}{8} | 3÷8
= \tan^{-1}(2) | arctan(2)
= \tan^{-1}(2) | atan(2)
= \arctan 2 | \tan^{-1} 2
= -\frac{b}{2a} | -b/(2a)
= \frac{-b+\sqrt{b^2-4ac}}{2a} | (-b + sqrt(b^2 - 4ac))/(2a)
= n! | n!
= x^{10} | x^10
= a_{12} | a_12
!= a_1 2 | a_12
= \frac{\pi^2}{6} | pi^2/6
= \sin(2x) | sin 2x
= 2\cos\theta | 2cosθ
= e^{-x^2} | exp(-x^2)
= \ln(x+1) | ln(x+1)
= 1.5\times10^{-3} | 0.0015
= 6.02\times10^{23} | 6.02e23
= 6.02\times10^{23} | 6.02E+23
!= 6.02\times10^{23} | 6.02\times10^{22}
= 1e5 | 100000
= 0.1 | 1/10
= 0.1 | 10^{-1}
!= 0.1 | 0.01
= \{1,2,3\} | {1, 2, 3}
= [1,2] | [1, 2]
""",
    "letter case": r"""
!= RT | rT
!= PV | pv
!= nRT | NRT
!= \omega | \Omega
!= \Sigma | \sigma
!= \theta | \Theta
!= v_1 | V_1
!= kx | KX
!= qvB | qvb
!= x^2 | X^2
!= 2a+A | 3a
= ABC | ABC
!= abc | ABC
= Fd | dF
!= M | m
!= V | v
!= \Phi | \phi
= \phi | \phi
!= \Pi | \pi
!= H_0 | h_0
!= 3N | 3n
!= T-t | 0
!= \frac{V}{v} | 1
!= Aa | a^2
= Gm_1m_2/r^2 | \frac{Gm_1m_2}{r^2}
= F=ma | F = m a
!= F=ma | F=Ma
""",
    "units": r"""
= 4\text{ kg} | 4000 g
= 2\text{ h} | 120\text{ min}
= 1.5\text{ m} | 150 cm
!= 1.5\text{ m} | 150 mm
= 90\text{ km/h} | 25 m/s
!= 90\text{ km/h} | 90 m/s
= 3 | 3 kilometers
= 3 | 3 pounds
!= 3\text{ pounds} | 3\text{ ounces}
= 1\text{ ft} | 12\text{ inches}
!= 1\text{ ft} | 12\text{ ft}
= 20\text{ m}^2 | 20 m²
!= 20\text{ m}^2 | 20\text{ m}^3
= 20 | 20\text{ m}^2
= 5 | 5\text{ apples}
!= 5\text{ apples} | 5\text{ oranges}
= 5\text{ apples} | 5 apples
= 100 | 100 °F
!= 100^\circ\text{F} | 100^\circ\text{C}
= 12 | 12\,\text{N}
= 12\text{ N} | 12 newtons
!= 12\text{ N} | 12\text{ J}
= 50 | 50\text{ mL}
= 1\text{ L} | 1000\text{ mL}
= 8 | 8\text{ students}
= 15 | \$15
= 15 | 15 dollars
= \$15 | 15 dollars
= \$0.50 | 50 cents
!= \$15 | €15
= 1500 | \$1,500
= 1500 | \$1,500.00
= 3.5 | 3.5 hours
= 3.5 | 3½ hours
= 1 km | 1000 m
= 3\text{ min} | 180\text{ s}
= 3\text{ min} | 180 seconds
!= 3\text{ min} | 180\text{ min}
= 72 km/h | 20 m/s
= 5\text{ cm}^2 | 500\text{ mm}^2
= 1000\text{ cm}^3 | 1\text{ L}
= 0.5\text{ kg} | 500\text{ g}
= 100\text{ °C} | 100^\circ C
= 30\text{ N}\cdot\text{m} | 30\text{ N m}
= 30 | 30\text{ N}\cdot\text{m}
= 8.31 | 8.31\ \text{J/(mol·K)}
= 5 | 5\ \text{kg}\cdot\text{m/s}
= 25 | 25\text{ cm}^2
= 13.6\text{ g/cm}^3 | 13.6 g/cm³
= 220\text{ V} | 220 volts
!= 220\text{ V} | 220\text{ A}
!= 220\text{ V} | 220\text{ W}
= 3\text{ gallons} | 3 gal
= 6\text{ feet} | 2\text{ yards}
= 6'  | 6'
= 20\text{ years old} | 20
= 20 | 20 years
!= 20\text{ years} | 20\text{ months}
= 2\text{ years} | 2 yrs
= 4 | 4\text{ cups of flour}
= 7 | 7 red balls
= 3/4 | 3/4 of a cup
= 18 | 18\text{ tickets}
!= 18\text{ boys} | 18\text{ girls}
= 25\text{ cents} | \$0.25
= 2.50 | \$2.50
= €20 | 20 euros
!= £20 | \$20
= ¥100 | 100 yen
= ₹500 | 500 rupees
""",
    "words that change a number": r"""
!= 5 | 5 times as many
!= 5 | 5\text{ at least}
!= 5 | \text{at most }5
!= 5 | \text{less than } 5
!= 5 | 5 or fewer
!= 5 | 5+
!= 4 | 4 tripled
!= 4 | 4 cubed
!= 4 | 4 hundred
= 400 | 4 hundred
= 3000000 | 3 million
!= 3 | 3 billion
!= 6 | 6 a half
!= 6 | 6 minus
!= 8\text{ a.m.} | 8\text{ p.m.}
= 8:00 | 8:00 AM
= 2:30\text{ p.m.} | 14:30
= 20:30 | 8:30\text{ p.m.}
!= 7:45\text{ a.m.} | 19:45
!= 14:30 | 2:30
!= 9:15 | 9:51
!= 9:15 | 9.15
!= 10\text{ north} | 10\text{ south}
!= \text{March } 3 | \text{March } 4
= \text{March }3 | March 3
!= 12 | 12 feet below
!= -5 | 5 below zero
!= 12 | 12\text{ or less}
!= 12 | 12\text{ and above}
!= 12 | \text{approximately }13
= 12 | \text{approximately }12
= 12 | \text{about }12
!= 12 | \text{over }12
!= 12 | 12\text{ to }15
!= 12 | 12-15
!= 12 | \text{between }10\text{ and }12
!= 12 | 12\text{ (but not }13)
!= 12 | \text{either }12\text{ or }13
!= 12 | 12?13
!= 5 | 5, maybe 6
!= 5 | 5 or 6?
!= 5 | \text{5 is wrong}
!= 5 | \text{unknown}
!= 5 | 5!
!= 5 | -5
!= 5 | |−5|+1
!= 5 | 5x
!= 5 | x \ge 5
!= 5 | 5 < x
= -12 | \text{negative }12
= 5000 | 5 thousand
= 1500000 | 1.5 million
= \$3,000,000 | \$3 million
= 24 | 2 dozen
= 3/4 | three fourths
= 3/4 | 3 quarters
""",
    "letters that are no units": r"""
!= 3x | 3
!= 4k | 4
!= 6V | 6
!= \pi m | \pi
!= \pi r | \pi
!= 2\pi h | 2\pi
!= 7p | 7q
!= 8w | 8
!= \frac{m}{2} | \frac12
!= 5mg | 5
= 5\text{ mg} | 5
!= 2L | 2
!= 4\sqrt{m} | 4
!= n\pi | \pi
!= 10t+s | 10
""",
    "choices": r"""
!= (C) | (B)
!= C | (C) or (D)
!= C | C and D
!= C | A, C
!= C | not C
!= C | Either C or D
= B | (B)
= B | \text{B}
= B | **B**
= B | Choice B
= B | B) 12
= B | b
= B | \boxed{B}
= B | The answer is B
= B | Answer: B
= E | (E)
!= B | D
= A,B,D | A, B, and D
= A, B | \text{A and B}
= A, B | AB
= D | \text{(D)}
= D | D.
= D | (d)
= D | \textbf{D}
= D | Option (D)
= D | \mathrm{D}
= D | D: 25
= D | \text{D) } 25
!= D | \text{None}
!= D | (A), (D)
!= D | A or D
!= D | D, A
!= D | A/D
!= D | D or maybe B
= A,C | (A),(C)
= A,C | A and C
= AC | CA
""",
    "percentages": r"""
= 2/3 | 66\frac23\%
= 45\% | 0.45
= 45\% | 45
= 45\% | 45 percent
= 0.5\% | 0.005
= 0.5\% | 0.5
!= 0.5\% | 0.05
!= 45\% | 4.5
!= 45\% | 54\%
= 7.25 | 7.25\%
= 120\% | 1.2
= 0.75 | 75 %
= 75\% | \frac{75}{100}
= 12\frac12\% | 12.5\%
= 12\frac12\% | 0.125
= 33.3\% | 33.3 per cent
= 33.3\% | 33.3
!= 33.3\% | 1/3
!= 10\% | 0.01
!= 10\% | 1
= 1\% | 0.01
= -5\% | -0.05
= 5 \% | 5
= 150\% | \frac{3}{2}
!= 150\% | 15
""",
    "exact values and decimals": r"""
!= \frac{1}{3^{40}} | \frac{1}{3^{41}}
!= \frac{1}{3^{40}} | 0
!= 2^{-50} | 2^{-51}
!= 1.38\times10^{-23} | 1.38\times10^{-22}
!= 9.11e-31 | 9.1e-31
!= 1-10^{-9} | 1
!= \frac{1}{30!} | \frac{1}{29!}
!= 10^{-12} | 10^{-13}
!= 1+\frac{1}{10^{15}} | 1
!= \frac{22}{7} | \pi
!= 0.00001234 | 0.00001235
= 1.20 | 1.2
= \frac{2}{7} | 0.285714286
!= \frac{2}{7} | 0.2857
!= \frac{2}{7} | 0.29
= 1.4142136 | \sqrt2
!= \sqrt2 | 1.41
!= 100000000 | 100000001
!= 2 | 2.0000001
!= \frac{1}{10^9} | \frac{1}{10^8}
!= 10^{-20} | 2\cdot10^{-20}
!= e^{-30} | e^{-31}
!= \frac{1}{\binom{52}{5}} | \frac{1}{\binom{52}{6}}
!= \frac{1}{2}+\frac{1}{10^{10}} | \frac12
!= 3.00000001 | 3
!= 1.0000001 | 1.0000002
!= 0.999999999 | 1
!= 2^{100} | 2^{100}+1
!= \sqrt{2}+10^{-12} | \sqrt2
!= 99999999 | 10^8
= 0.30000000000000004 | 0.3
= \frac{1}{7} | 0.142857142857
""",
    "ellipses": r"""
= 1, 3, 5, \ldots, 99 | 1,3,\dots,99
!= 1,3,\dots,99 | 1,3,\dots,101
!= 1,2,3,\ldots | 2,4,6,\ldots
!= 2,4,\ldots,2n | 2,4,\ldots,n
= \{2,4,\ldots,2n\} | \{2,4,6,\dots,2n\}
!= 1+2+\dots+n | 1+4+\dots+n
!= a_1,\ldots,a_n | b_1,\ldots,b_n
= a_1,\ldots,a_n | a_1, \dots, a_n
!= 1,2,4,\ldots,64 | 1,2,3,\ldots,64
!= 3,5,7,\ldots | 3,6,9,\ldots
= 3,5,7,\ldots | 3,5,7,9,\ldots
!= 1,1/2,\ldots,1/n | 1,1/2,\ldots,1/(n+1)
!= x_1+\dots+x_n | x_1+\dots+x_{n+1}
= x_1,x_2,\ldots,x_n | x_1,\ldots,x_n
= 2^1+2^2+\cdots+2^n | 2+4+\dots+2^n
""",
    "lists, tuples and systems": r"""
= 3, 4 | 4, 3
= 3,4 | 3 \text{ or } 4
= 3,4 | 3 und 4
= 3,4 | 3 y 4
= 3,4 | x=3 \lor x=4
!= 3,4 | 3
!= 3,4 | 3,4,5
!= (3,4) | (4,3)
= (3,4) | x=3, y=4
= (3,4) | y=4, x=3
!= (3,4) | x=4, y=3
= (3,4) | \begin{cases} x=3 \\ y=4 \end{cases}
= (3,4) | \langle 3, 4\rangle
= (3,4) | \begin{pmatrix}3\\4\end{pmatrix}
= (3,4,5) | \left[3,4,5\right]
!= [3,4] | (3,4)
= [3,4) | [3,4[
= (1,-2,3) | \vec{v}=(1,-2,3)
= \langle 1,2\rangle | (1,2)
= \langle 1,2\rangle | \begin{bmatrix}1\\2\end{bmatrix}
= (1,2) | [1,2]^T
= \begin{pmatrix}1\\2\end{pmatrix} | \begin{pmatrix}1\\2\end{pmatrix}
!= \begin{pmatrix}1\\2\end{pmatrix} | \begin{pmatrix}2\\1\end{pmatrix}
= 3\mathbf{i}+4\mathbf{j} | 3\hat{i}+4\hat{j}
= \vec{AB} | \overrightarrow{AB}
= \begin{vmatrix}1&2\\3&4\end{vmatrix} | -2
= x=1,y=2,z=3 | (1,2,3)
= x=1,y=2 | y=2,x=1
= (x,y)=(1,2) | x=1,\ y=2
= (1,2),(3,4) | (3,4),(1,2)
= (1,2),(3,4) | (1,2) \text{ and } (3,4)
!= (1,2),(3,4) | (1,2),(4,3)
= \begin{cases}x=1\\y=2\end{cases} | (1,2)
= a=3,b=4 | a=3; b=4
""",
    "intervals and sets": r"""
= (-\infty,2] | x \le 2
= (-\infty,2] | ]-\infty,2]
!= (-\infty,2] | x<2
= \{x\mid x<2\} | (-\infty,2)
= \{x\in\mathbb{R} : x\ge 2\} | [2,\infty)
= (1,3) | 1<x<3
= x>5 | 5<x
= x>5 | (5,\infty)
!= x>5 | x<5
= |x|<2 | (-2,2)
= (-\infty,1)\cup(1,\infty) | x\ne 1
= \mathbb{R} | (-\infty,\infty)
= \emptyset | \{\}
= \{1\} | 1
= (0,1) | 0<x<1
= (0,1] | 0<x\le1
!= (0,1] | 0<x<1
= [0,\infty) | x\geq 0
= [0,\infty) | [0, +\infty)
= (-\infty,0] | (-∞, 0]
= (-2,3) | \{x \mid -2<x<3\}
= (-2,3) | \{x\in\mathbb R\mid -2<x<3\}
= [-1,1]\cup[2,3] | [2,3]\cup[-1,1]
= [-1,1]\cup[2,3] | -1\le x\le1 \text{ or } 2\le x\le 3
!= [-1,1]\cup[2,3] | [-1,3]
= \mathbb{R}\setminus\{1\} | (-\infty,1)\cup(1,\infty)
= \mathbb{R} | \text{all real numbers}
= x<-1 \text{ or } x>1 | (-\infty,-1)\cup(1,\infty)
= x<-1 \text{ or } x>1 | |x|>1
= \{2,3\} | x\in\{2,3\}
= \{2,3\} | x = 2, 3
= \emptyset | \varnothing
""",
    "repeating decimals": r"""
= \frac{1}{3} | 0.\overline{3}
= \frac{1}{3} | 0.\dot{3}
= \frac{1}{3} | 0.(3)
= \frac{1}{3} | 0.333...
= \frac{5}{11} | 0.\overline{45}
!= \frac{1}{3} | 0.\overline{4}
= 0.1\overline{6} | 1/6
= 0.\overline{142857} | \frac17
= 0.1\overline{23} | \frac{61}{495}
= 1.\overline{3} | \frac43
= 0.\overline{9} | 1
= 0.666... | \frac23
= 0.666\ldots | 2/3
= 3.\dot{3} | 10/3
""",
    "complex numbers": r"""
= 2+3i | 3i+2
= 2+3i | 2+3\mathrm{i}
= -i | 0 - i
= 5e^{i\pi} | -5
!= 2+3i | 2-3i
= i | \sqrt{-1}
= \frac{1}{1+i} | \frac{1-i}{2}
= 4-3i | -3i+4
= 1+i | i+1
= e^{i\pi/2} | i
= \frac{1+i\sqrt3}{2} | \frac12+\frac{\sqrt3}{2}i
= 2i | 2\mathrm{i}
= |3+4i| | 5
""",
    "positive quantities": r"""
= \frac{1}{\sqrt{ab}} | \frac{1}{\sqrt a \sqrt b}
= \sqrt{\frac{2h}{g}} | \frac{\sqrt{2h}}{\sqrt{g}}
!= \sqrt{x^2} | x
!= \sqrt{a+b} | \sqrt a+\sqrt b
= \sqrt{4x} | 2\sqrt x
= \sqrt{\frac{k}{m}} | \frac{\sqrt{k}}{\sqrt{m}}
= \sqrt{xy} | \sqrt x\sqrt y
= \sqrt{x^2y} | x\sqrt{y}
= \frac{1}{\sqrt{2\pi n}} | \frac{1}{\sqrt{2\pi}\sqrt{n}}
= \ln a+\ln b | \ln(ab)
= \log_a b | \frac{\ln b}{\ln a}
""",
    "binomials and numerals": r"""
= \binom{7}{3} | 35
= \binom{n}{2} | \frac{n(n-1)}{2}
= \binom{7}{3} | {}_7C_3
= \binom{7}{3} | \dbinom{7}{3}
= \binom{7}{3} | C_7^3
= \binom{7}{3} | 7C3
= 1101_2 | 1101_{2}
= 1101_2 | 1101
!= 1101_2 | 1101_3
!= 1101_2 | 1011_2
= \text{FF}_{16} | FF_{16}
= 777_8 | 777_{8}
= 1A_{16} | 1a_{16}
= 10_2 | 10_{\text{two}}
= 0b101 | 0b101
= 12_{10} | 12
""",
    "wrappers": r"""
= 17 | \underline{17}
= 17 | \textcolor{blue}{17}
= 17 | \mathbf{17}
= 17 | \fbox{17}
= 17 | \colorbox{yellow}{17}
= 17 | {\color{red} 17}
= 17 | \textbf{17}
= 17 | $17$
= 17 | \(17\)
= 17 | `17`
= 17 | "17"
= \frac{3}{4} | \\frac{3}{4}
= \frac{3}{4} | \cfrac{3}{4}
= \sqrt{5} | \\sqrt{5}
= 12 | \mbox{12}
= 12 | \hbox{12}
= 12 | \mathsf{12}
= 12 | \bf{12}
= 12 | {\bf 12}
= 12 | \textit{12}
= 12 | \Large{12}
= 12 | \boxed{\boxed{12}}
= 12 | \displaystyle 12
= 12 | \!12
= 12 | 12\,\,
= 12 | \left\{12\right\}
= \frac12 | {1\over2}
= \frac12 | \frac{1}{2}\;
= 12 | \text{12}\text{}
= 12 | \$12\$
= \frac{1}{2} | \dfrac{1}{\,2\,}
= \frac{1}{2} | \\dfrac{1}{2}
= \frac{\pi}{2} | \\frac{\\pi}{2}
= 12 | \\text{12}
""",
    "labels": r"""
= 17 | \text{Answer} = 17
= 17 | \text{The answer is }17
= 17 | x = 17
= 17 | \text{Perimeter: }17
= 17 | n=17\text{ students}
= 17 | \text{Total} = 17
= 2x+3 | f(x)=2x+3
= 2x+3 | y=2x+3
= f(x)=2x | f(x)=2x \text{ for all } x
= f(x)=2x | f(x)=2x, \forall x \in \mathbb{R}
= 5 | \text{Ans: }5
= 5 | \text{Final answer: }5
= 5 | Answer = 5
= 5 | \text{Length} = 5\text{ cm}
= 5 | \text{The value is } 5
= 5 | \text{sum}=5
= 5 | \overline{AB}=5
= 5 | BC=5\text{ cm}
= 5 | \triangle ABC: 5
= 5 | k=5
= 5 | k_{\max}=5
= 5 | \max f=5
= 5 | n(A\cup B)=5
= 5 | [ABC]=5
= 5 | |A|=5
= 5 | \mathrm{P}=5
= 5 | E(X)=5
= 5 | \alpha+\beta=5
= 5 | x+y=5
= 5 | 10-5=5
= 5 | \therefore 5
= 5 | \Rightarrow 5
= x^2 | f(x)=x^2
= x^2 | f(x)=x^2,\ x>0
= f(x)=x+1 | x+1
= f(x)=x+1 | f(x)=1+x \text{ for all real } x
= f(n)=2n | f(n)=2n \text{ for every } n\in\mathbb{N}
= f(x)=0,\ f(x)=x | f(x)=x \text{ and } f(x)=0
!= f(x)=0 | f(x)=1
""",
    "equations": r"""
!= y=5 | x=5
!= y=2x+1 | y=2x+2
= x^2+y^2=9 | y^2+x^2=9
= x^2+y^2=9 | x^2+y^2-9=0
!= x^2+y^2=9 | x^2+y^2=3
= x-2y=4 | y=\frac{x-4}{2}
""",
    "Unicode": r"""
= 12 | ١٢
= 12 | １２
= \frac{1}{4} | ¼
= 2\frac{3}{4} | 2¾
= x^2+y^3 | x²+y³
= x_1+x_2 | x₁+x₂
= -7 | −7
= -7 | –7
= 7 | 7
= \alpha | α
= \pi r^2 | πr²
= 3\times4 | 3×4
= a\neq b | a≠b
""",
    "other languages": r"""
= 7 | 7個
= 7 | 7 metros
= 7 | 7 Stunden
= 7 | 7 heures
= 7 | 7人
= 7 | 7 км
= 7 | 7时
= 70000 | 7万
= 7\text{ km} | 7公里
!= 7\text{ km} | 7米
= 1,2 | 1と2
= \text{是} | 是
= \text{oui} | Oui
!= \text{oui} | non
""",
    "digit groups": r"""
= 10000 | 10 000
= 10000 | 10'000
= 10000 | 10,000
= 10000 | 10\,000
= 1234567.89 | 1,234,567.89
= 12345678 | 1,23,45,678
!= 10000 | 1000
= 1{,}000{,}000 | 1000000
= 1.000.000 | 1.000.000
= 1 000 000 | 1,000,000
= 3,141.59 | 3141.59
= 1,2,3 | 1;2;3
= 1,2,3 | \{1;2;3\}
""",
    "words": r"""
= Tuesday | tuesday
= \text{odd} | Odd
!= \text{odd} | even
!= Bob | Bob and Carol
= Bob and Carol | Carol and Bob
= \text{isosceles triangle} | Isosceles triangle
!= \text{right triangle} | triangle
= \text{no solution} | No solution.
= True | true
!= True | False
= yes | Yes.
= \text{Friday} | friday
!= \text{Friday} | Thursday
= \text{infinitely many} | Infinitely many
= \text{infinitely many solutions} | \text{infinitely many solution}
= \text{cannot be determined} | Cannot be determined
!= \text{one solution} | \text{no solution}
= Pythagoras' theorem | Pythagoras' theorem
!= 2nd | 3rd
= 21st | 21
= \text{neither} | Neither
!= \text{not a square} | \text{a square}
!= \text{Anna} | \text{Hannah}
""",
    "ratios and angles": r"""
= 3:5 | 3 to 5
= 3:5 | 6:10
= 3:5 | 3 : 5
!= 3:5 | 5:3
= 1:2:3 | 1:2:3
= 60^\circ | 60 degrees
= 60^\circ | 60°
!= 60^\circ | 60\text{ rad}
= 45^\circ 30' | 45.5^\circ
= \angle A = 60^\circ | 60
= 7:30 | 7:30 am
!= 7:30\text{ AM} | 7:30\text{ PM}
!= 7:30 | 7:03
= 10:00\text{ a.m.} | 10:00 AM
= 10\text{ a.m.} | 10 AM
= 2:1 | 4:2
= 2:1 | 2
= a:b | a : b
!= a:b | b:a
= \frac{3}{5} | 3:5
= 2 : 3 : 4 | 2:3:4
!= 2:3:4 | 2:4:3
= 30^\circ | 30 deg
= \pi\text{ rad} | 180^\circ
= \pi\text{ rad} | \pi
= 12^\circ30'36'' | 12.51^\circ
!= 30^\circ | 30'
""",
    "matrices, residues and identities": r"""
= \begin{pmatrix}1&0\\0&1\end{pmatrix} | \begin{bmatrix}1&0\\0&1\end{bmatrix}
!= \begin{pmatrix}1&0\\0&1\end{pmatrix} | \begin{bmatrix}1&0\\0&2\end{bmatrix}
= x\equiv 3\pmod 5 | 3 \pmod 5
= x\equiv 3\pmod 5 | 8 \pmod 5
!= x\equiv 3\pmod 5 | 3 \pmod 7
= \ln 6 | \ln 2+\ln 3
= \frac{\sin 2x}{2} | \sin x\cos x
= (x-3)(x+3) | x^2-9
!= (x-3)(x+3) | x^2+9
= \log_{10} 5 | \lg 5
= 8!! | 384
= 5^{th} | 5th
= first | First
= 17 | 17.
= 17 | \approx 17
= \sqrt{3} | \sqrt{3}\approx 1.732
= x^{-1} | \frac1x
= \dfrac{d y}{d x}=3 | y'=3
= \frac{x^2}{2}+C | \frac12x^2+C
= \pm 2 | 2, -2
= x=\pm2 | \pm 2
!= \pm 2 | 2
= 2\pm\sqrt{3} | 2+\sqrt3, 2-\sqrt3
= 5 cm | 5 centimeters
= -\frac{3}{4} | \frac{-3}{4}
= \frac{3}{4} | .75
= 5 | +5
= 12\text{ square feet} | 12\text{ ft}^2
= 12\text{ sq. ft} | 12 ft^2
= 9.8\text{ m/s}^2 | 9.8 m s^{-2}
= 40\text{ mph} | 40 miles per hour
= 1\text{ day} | 24 hours
= 2\text{ weeks} | 14\text{ days}
= 2 | two
= \text{two} | 2
= 1000 | 10^3
= 7\pmod{11} | x\equiv 7\ (\text{mod } 11)
= 7\pmod{11} | 7 \bmod 11
""",
    "functions and equal forms": r"""
= \sin\frac{\pi}{6} | \frac12
= \tan 45^\circ | 1
= \cos 60^\circ | \frac{1}{2}
= \sin 30^\circ | 0.5
= \frac{2^{10}-1}{2^9} | 2-\frac{1}{512}
= 3^{1/2} | \sqrt{3}
= \log_2 8 | 3
= \ln e | 1
= e^{\ln 2} | 2
= \frac{1}{2}\ln 4 | \ln 2
= \left(\frac{1}{2}\right)^{-1} | 2
= (a+b)^2 | a^2+2ab+b^2
!= (a+b)^2 | a^2+b^2
= \frac{a^2-b^2}{a-b} | a+b
= 2^{n+1} | 2\cdot 2^n
= 4^n | 2^{2n}
!= 2^n | n^2
= \frac{n(n+1)}{2} | \binom{n+1}{2}
= (n+1)! | (n+1)\cdot n!
= \sum_{k=1}^{3} k | 6
= x^2-4x+4 | (x-2)^2
= -(x-3) | 3-x
!= x-3 | 3-x
= \frac{x+1}{2} | \frac{1}{2}x+\frac12
= \sec^2 x | 1+\tan^2 x
= \cot x | \frac{1}{\tan x}
= \sinh x | \frac{e^x-e^{-x}}{2}
= \lfloor 3.7\rfloor | 3
= \lceil 3.2\rceil | 4
= \min(a,b) | \min(b,a)
= \gcd(12,18) | 6
= \operatorname{lcm}(4,6) | 12
!= \gcd(a,b) | \gcd(a,c)
= \operatorname{lcm}(a,b) | \text{lcm}(b,a)
= 7!! | 105
= {}^{7}P_2 | 42
= P(7,2) | P(7,2)
= \sqrt[4]{16} | 2
= \sqrt{\sqrt{16}} | 2
= \arcsin 1 | \frac{\pi}{2}
= \sin^{-1} 1 | \frac{\pi}{2}
= \arccos\frac12 | \cos^{-1}\frac{1}{2}
= \log 100 | 2
= \lg 100 | 2
= \log_{3}9 | 2
= \int_0^1 x\,dx | \frac12
= \frac{dy}{dx} = 3x^2 | y' = 3x^2
= \frac{d^2y}{dx^2}=2 | y''=2
= x\,dy | x dy
= e^x + C | e^x+C
= \sin x + C | C + \sin x
!= e^x + C | e^x
= \frac{1}{3} x^3 + c | \frac{x^3}{3}+c
= 2\sin x\cos x | \sin(2x)
= \frac{1}{2}gt^2 | \frac{gt^2}{2}
= v_0 t+\frac12 at^2 | \frac{1}{2}at^2+v_0t
= \frac{GM}{R^2} | GM/R^2
!= \frac{GM}{R^2} | Gm/R^2
= \hbar\omega | \omega\hbar
= \lambda | \lambda
!= \lambda | \Lambda
= \mu mg | \mu m g
= k_B T | k_BT
!= \rho gh | \rho GH
!= \epsilon_0 | \epsilon
= \vec{F} | \vec{F}
= \bar{x} | \overline{x}
= x' | x^{\prime}
!= x' | x
""",
    "sets, pairs and equations": r"""
= A^{-1} | A^{-1}
= A^c | A^c
= A\cap B | B\cap A
= A\cup B | B \cup A
= \{a,b\} | \{b,a\}
= \{(1,2),(2,3)\} | \{(2,3),(1,2)\}
!= \{(1,2)\} | \{(2,1)\}
!= \{1,2\} | \{1,2,3\}
= \{1,2,2\} | \{1,2\}
= \{-1,1\} | \pm1
= \{0\} | 0
!= \{0\} | \emptyset
= \{x: x\ne 2\} | \mathbb{R}\setminus\{2\}
= (0,\infty) | \mathbb{R}^+
= \mathbb{Z} | \mathbb{Z}
!= \mathbb{Z} | \mathbb{N}
= [0,1]\cap[0.5,2] | [0.5,1]
= (-\infty,-1)\cup(1,\infty) | \mathbb{R}\setminus[-1,1]
= (a,b) | a<x<b
= [a,\infty) | x \ge a
= 1<x\leq 3 | (1,3]
= x\in(1,3] | 1<x\leq3
= 3>x>1 | 1<x<3
= n\ge 3 | n \geq 3
!= n\ge 3 | n>3
= a\le b | b\ge a
= x+y>3 | y+x>3
!= x+y>3 | x+y<3
= y\ge 2x+1 | y-2x\ge 1
= x=2 \text{ or } x=3 | x\in\{2,3\}
= x=2,3 | 2,3
= x_1=2, x_2=3 | 3,2
= (2,3) | (x,y)=(2,3)
= (2,3) | x=2;\ y=3
= (2,3) | 2,3
!= (2,3) | 3,2
= (2,3) | \left(2,\,3\right)
= (2,3) | (2.0, 3.00)
= (2,\frac12) | (2, 0.5)
= (2,3),(4,5) | \{(2,3),(4,5)\}
= a=2,b=3,c=4 | c=4,a=2,b=3
!= a=2,b=3 | a=3,b=2
= y=x+1 | x-y+1=0
= y=x+1 | y - x = 1
= \frac{x}{2}+\frac{y}{3}=1 | 3x+2y=6
= x^2+y^2-2x=0 | (x-1)^2+y^2=1
!= x^2+y^2-2x=0 | (x+1)^2+y^2=1
= 2x+3y=6 | 4x+6y=12
= xy=1 | y=\frac{1}{x}
= y^2=4x | x=\frac{y^2}{4}
""",
    "hedges and other numbers": r"""
!= 5 | \text{no } 5
!= 5 | 5 \text{ and } 6
!= 5 | 5\text{ or }-5
!= 5 | \pm 5
!= 5 | 4\text{ or }5
!= 5 | \leq 5
!= 5 | \geq 5
!= 5 | >5
!= 5 | \neq 5
!= 5 | 5\pm0.1
!= 5 | 5\sim6
!= 5 | 5-6
!= 5 | 5, 6
!= 5 | (5,6)
!= 5 | [5,5]
!= 5 | 5\%5
!= 5 | 55
!= 5 | 5.5
!= 5 | 0.5
!= 5 | \text{fifty}
!= 5 | x
!= 5 | ?
!= 5 | \ldots
!= 5 | \text{none}
!= 5 | \infty
""",
    "numbers written otherwise": r"""
= 5 | \text{five}
= 5 | 5.
= 5 | 5.0
= 5 | 5.000
= 5 | \frac{10}{2}
= 5 | \sqrt{25}
= 5 | 2+3
= 5 | \text{five apples}
= 5 | 5 \text{ units}
= 5 | 5\ \text{units}^2
= 5 | \mathbf{5}
= -\frac{1}{2} | \frac{1}{-2}
= -\frac{1}{2} | -.5
!= -\frac{1}{2} | \frac12
= --5 | 5
= -(-5) | 5
!= -5 | - 6
= - 5 | -5
= 10^{-3} | 0.001
= 1\times10^{3} | 1000
= 2.0\times 10^{3} | 2000
= 2,000 | 2\times10^3
= 1/2 + 1/3 | 5/6
= 3\frac{1}{4} | 13/4
= 3\frac{1}{4} | 3.25
= -1\frac12 | -1.5
= 7/3 | 2 1/3
!= 7/3 | 2/3
= 3 + 2\sqrt{2} | (1+\sqrt2)^2
= \frac{1}{2-\sqrt3} | 2+\sqrt{3}
= \sqrt{12} | 2\sqrt{3}
= \sqrt{0.25} | 0.5
= \frac{1+\sqrt5}{2} | 1.618033989
!= \frac{1+\sqrt5}{2} | 1.618
= \pi | 3.14159265
!= \pi | 3.14
!= e | 2.718
= 2\pi | 6.283185307
""",
    "units, words behind numbers": r"""
= 22 | 22\text{ square meters}
= 22 | 22\ \text{m}^3
= 22 | 22\text{ m/s}
= 22 | 22\text{ mph}
= 22 | 22\text{ degrees Celsius}
= 22 | 22\text{ dollars per hour}
= 22 | 22\text{ miles per gallon}
= 22 | 22\text{ kg/m}^3
= 22 | 22\text{ ways}
= 22 | 22\text{ people}
= 22 | 22\text{ women}
= 22 | 22\text{ cm}^{2}
= 22 | 22 sq cm
= 22 | 22\,\mathrm{cm}
= 22 | 22\,\mathrm{kg\cdot m^2}
= 22 | 22~\text{g}
= 22 | 22\ \mu\text{m}
= 22 | 22\ \mu m
= 22 | 22kg
= 22 | 22cm
!= 22 | 22x
!= 22 | 22n
!= 22 | 22 \text{ percent more than } x
!= 22 | 22\text{ squared}
!= 22 | \text{twice }22
!= 22 | \text{half of }22
!= 22 | 22\text{ more than }x
= 22\text{ cm} | 0.22\text{ m}
= 60\text{ s} | 1\text{ min}
!= 60\text{ s} | 1\text{ h}
= 1\text{ year} | 12 months
= 1\text{ hectare} | 10000\text{ m}^2
= 5\text{ N} | 5\text{ kg}\cdot\text{m/s}^2
= 1\text{ kWh} | 1 kWh
= 1.5\text{ hours} | 1\text{ hour }30\text{ minutes}
= 5 ft 3 in | 63 inches
= 36\text{ km/h} | 10\text{ m/s}
""",
}

# Responses without a box, each with the answer to be found in it, or None.
SAID = [
    ("Let us see.\n\n`42`", "42"),
    ("> **42**", "42"),
    ("答案：2", "2"),
    ("La réponse est 2.", "2"),
    ("Antwort: 2", "2"),
    ("The correct answer is (C).", "(C)"),
    ("Therefore, option C is correct.", "C"),
    ("**Final Answer: (C)**", "(C)"),
    ("Final answer is C, not B.", "C"),
    ("The answer is C because A fails.", "C"),
    ("answer is B. Wait, the answer is C.", "C"),
    ("Both point to wear...\n\nC", "C"),
    ("**B. Mitochondria**", "B. Mitochondria"),
    ("I think the answer is B or C.", "B or C"),
    ("The answer is B: no, C", None),
    ("The answer is A bus.", "A bus"),
    ("Answer: **Yes**", "Yes"),
    ("The answer is Tuesday, because it rains.", "Tuesday"),
    ("**Answer:** No solution", "No solution"),
    ("Answer: 12 or 13", "12 or 13"),
    ("The answer is **12**.", "12"),
    ("The answer is −3.", "−3"),
    ("Thus the probability is **3/4**.", "3/4"),
    ("Final answer: 12 apples and 3 left over", "12"),
]


def verdict(reference: str, answer: str) -> str:
    return math.grade(Question("math", rf"So it is \boxed{{{answer}}}.", reference), False).verdict


def lines(table: str) -> list[tuple[str, str, str]]:
    """Return the verdict, the reference and the answer of each line."""
    found = []
    for line in table.strip("\n").splitlines():
        sign, _, pair = line.partition(" ")
        reference, _, answer = pair.partition(" | ")
        found.append(("correct" if sign == "=" else "incorrect", reference, answer))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_answers_of_a_kind_are_right_where_they_mean_the_same(kind: str) -> None:
    wrong = [line for line in lines(KINDS[kind]) if verdict(*line[1:]) != line[0]]
    assert wrong == []


@pytest.mark.parametrize("kind", KINDS)
def test_two_answers_are_of_one_class_exactly_where_each_is_right_against_the_other(kind: str) -> None:
    for _, one, other in lines(KINDS[kind]):
        mutual = verdict(one, other) == verdict(other, one) == "correct"
        assert (len({*math.answer_classes([one, other])}) == 1) == mutual, (one, other)


def test_all_answers_of_a_class_are_right_against_each_other() -> None:
    texts = [
        "12.5",
        r"12.5\%",
        "0.125",
        r"\frac18",
        "5 m",
        "5",
        "5 cm",
        "500 cm",
        "x=5",
        "y=5",
        r"\frac13",
        "0.333333",
        "0.3333333",
    ]
    numbers = math.answer_classes(texts)
    for number in set(numbers):
        members = [text for text, own in zip(texts, numbers, strict=True) if own == number]
        assert all(verdict(a, b) == "correct" for a in members for b in members)


@pytest.mark.parametrize(("response", "expected"), SAID)
def test_lenient_takes_what_is_said_to_be_the_answer(response: str, expected: str | None) -> None:
    assert math.extract_answer(response, lenient=True) == expected


def test_a_value_in_exponents_is_not_worked_out_to_be_compared() -> None:
    assert verdict(r"\frac{2^{2005}+1}{3\cdot 2^{2006}}", r"\frac{1}{3\cdot 2^{2006}}") == "incorrect"
    assert verdict(r"10^{100000}", r"10^{100001}") == "incorrect"


# Public cases.


def public_cases() -> list[dict[str, Any]]:
    path = DATA / "grading" / "public_cases.jsonl"
    if not path.exists():
        pytest.skip(f"no {path}: set TRD_DATA to the directory with the data")
    cases = [json.loads(line) for line in path.read_text().splitlines()]
    return [case for case in cases if "tests" not in case]


def test_the_public_cases_have_the_verdicts_that_they_are_labelled_with() -> None:
    wrong: Counter[str] = Counter()
    differing = []
    cases = public_cases()
    for case in cases:
        question = Question("math", case["response"], case["reference"])
        found = math.grade(question, bool(case["lenient"])).verdict
        if found != case["right"]:
            differing.append((case["kind"], case["reference"], case["response"], found))
            wrong[case["right"]] += 1
    assert len(cases) == 467
    assert wrong["incorrect"] == 0, differing
    assert len(differing) <= 0.03 * len(cases), differing


def test_public_cases_are_of_one_class_exactly_where_they_are_right_against_each_other() -> None:
    for case in public_cases():
        answer = math.extract_answer(case["response"], bool(case["lenient"]))
        if answer is None:
            continue
        pair = case["reference"], answer
        mutual = all(math.same_answer(a, b)[0] for a, b in (pair, pair[::-1]))
        assert (len({*math.answer_classes(pair)}) == 1) == mutual, pair
