"""Random Jinja templates, out of what chat templates use, on variables of every kind."""

VARIABLES = {
    "a": 7, "b": -3, "zero": 0, "x": 2.5, "big": 1e20, "tiny": 1e-7, "yes": True, "no": False, "nil": None,
    "s": "Hello, World", "t": "  spaced\tout\n", "u": "Grüße ß 你好 😀", "e": "", "q": "it's \"quoted\" \\ <&>", "num": " 42 ",
    "lines": "one\ntwo\r\nthree\n\n",
    "l": [3, 1, 2], "names": ["bob", "Alice", "carol", "alice"], "mixed": [1, "two", 3.0, None, True, [1, 2], {"k": "v"}],
    "d": {"b": 1, "a": 2, "items": "own"}, "nested": {"x": {"y": [10, {"z": "deep"}]}}, "empty_list": [], "empty_dict": {},
    "people": [{"name": "Ann", "age": 31, "tags": ["x"]}, {"name": "bob", "age": 4, "tags": []}, {"name": "Cy", "age": 31}],
    "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " Hello "}],
}
NAMES = list(VARIABLES) + ["missing"]
LITERALS = ["0", "1", "2", "-1", "10", "1.5", "0.1", "1e3", "'a'", "'o'", "''", "', '", "\"it's\"", "'\\n'", "true", "none",
            "[]", "[1, 2]", "{}", "{'a': 1}", "(1, 2)", "(1,)", "'%s!'", "'é'", "'l'", "' '"]
# Thrice what works on any two values: a template that fails early tells little.
ANY = ["~", "==", "!=", "and", "or"]
BINARY = ANY + ANY + ANY + ["+", "-", "*", "/", "//", "%", "<", "<=", ">", ">=", "in", "not in"]
FILTERS = ["upper", "lower", "title", "capitalize", "trim", "length", "string", "list", "first", "last", "int", "float",
           "abs", "round", "tojson", "reverse|list", "sort", "unique|list", "items|list", "dictsort", "join", "join(', ')",
           "default('D')", "default('D', true)", "d(1)", "replace('l', 'L')", "replace('o', '', 1)", "indent(2)",
           "indent(3, true)", "tojson(indent=2)", "tojson(sort_keys=true)", "map('upper')|list", "map(attribute='name')|list",
           "selectattr('age')|list", "selectattr('name', 'equalto', 'bob')|list", "rejectattr('age', 'gt', 5)|list",
           "select('string')|list", "reject('none')|list", "batch(2)|list", "sum", "min", "max", "count", "wordcount",
           "trim('H d')", "center(12)", "truncate(6)", "round(1)", "round(2, 'floor')", "int(5)", "float(1.5)",
           "map('string')|join('|')", "sort(reverse=true)", "sort(attribute='age')", "select|list", "slice(2)|list",
           "map(attribute='tags', default=[])|list", "attr('upper')", "tojson(ensure_ascii=true)",
           "tojson(separators=(',', ':'))", "int(0, 16)", "join(',', attribute='name')", "selectattr('role', 'in', ['user'])|list",
           "max(attribute='age')", "unique(case_sensitive=true)|list", "sum(attribute='age')", "format(1, 'x')"]
TESTS = ["defined", "undefined", "none", "string", "number", "integer", "float", "boolean", "mapping", "sequence", "iterable",
         "true", "false", "odd", "even", "divisibleby 3", "divisibleby(2)", "eq 7", "ne 'a'", "gt 2", "lt(3)", "in [1, 2, 'a']",
         "lower", "upper", "sameas none", "callable", "filter", "equalto(none)"]
METHODS = [".upper()", ".lower()", ".strip()", ".lstrip('H')", ".rstrip('d\\n')", ".split()", ".split(',')", ".split('l', 1)",
           ".rsplit('o', 1)", ".splitlines()", ".startswith('H')", ".endswith(('d', 'x'))", ".replace('o', '0')", ".title()",
           ".capitalize()", ".find('o')", ".rfind('o')", ".count('l')", ".join(['a', 'b'])", ".isdigit()", ".isalpha()",
           ".isspace()", ".isupper()", ".get('a')", ".get('q', 5)", ".items()|list", ".keys()|list", ".values()|list", ".index(1)",
           ".count(1)", ".x", ".x.y", ".a", "['a']", "[0]", "[-1]", "[1:]", "[:2]", "[::-1]", "[-2:]", "[1:10:2]", "['items']", ".items",
           "[a]", "[s]", "[:-1]", ".name", ".zfill(5)", ".swapcase()", ".partition(',')", ".removeprefix('He')", ".format(1, 2)",
           ".center(7, '*')", ".ljust(9)", ".append(1)", ".pop()", ".__class__", "['__init__']", ".0", ".isalnum()", ".copy()"]


class RandomTemplate:
    def __init__(self, random):
        self.random = random

    def pick(self, options):
        return options[self.random.randrange(len(options))]

    def expression(self, depth=3):
        kind = self.random.randrange(13) if depth > 0 else self.random.randrange(2)
        inner = lambda: self.expression(depth - 1)  # noqa: E731
        if kind == 0:
            return self.pick(LITERALS)
        if kind == 1:
            return self.pick(NAMES)
        if kind == 2:
            return f"{inner()} {self.pick(BINARY)} {inner()}"
        if kind == 3:  # numbers
            numbers = ["a", "b", "zero", "x", "yes", "2", "-1", "0.5", "l|length", "d.a", "l[0]", "s.count('o')"]
            return " ".join([self.pick(numbers), self.pick(BINARY[15:-2]), self.pick(numbers)])
        if kind in (4, 5):
            return f"({inner()})|{self.pick(FILTERS)}"
        if kind == 6:
            return f"{self.pick(NAMES)}|{self.pick(FILTERS)}|{self.pick(FILTERS)}"
        if kind == 7:
            return f"({inner()}) is {self.pick(['', 'not '])}{self.pick(TESTS)}"
        if kind in (8, 9):
            return f"{self.pick(NAMES)}{self.pick(METHODS)}"
        if kind == 10:
            return f"({inner()} if {inner()}{' else ' + inner() if self.random.random() < 0.7 else ''})"
        if kind == 11:
            return self.pick([f"not {inner()}", f"-({inner()})", f"[{inner()}, {inner()}]", f"{{'k': {inner()}, 1: {inner()}}}",
                              f"({inner()}, {inner()})", f"range({self.random.randrange(-3, 6)})|list",
                              f"dict(a={inner()}, b=1)", f"({inner()}){self.pick(METHODS)}", f"+({inner()})"])
        return f"({inner()}) {self.pick(BINARY)} ({inner()})"

    def tag(self, text):
        return self.pick(["{%", "{%-", "{%", "{%+"]) + f" {text} " + self.pick(["%}", "-%}", "%}", "%}\n"])

    def text(self):
        return self.pick(["", " ", "\n", "text", "  \n  ", "x\n\n", "<|im_start|>", "{# note #}", " {#- n -#} ", "\t"])

    def output(self):
        return self.pick(["{{", "{{-"]) + f" {self.expression()} " + self.pick(["}}", "-}}"])

    def statement(self, depth):
        kind = self.random.randrange(11) if depth > 0 else 0
        body = lambda: self.block(depth - 1)  # noqa: E731
        if kind in (0, 1, 2):
            return self.output()
        if kind == 3:
            return self.tag(f"set v = {self.expression(2)}") + body() + "{{ v }}"
        if kind == 4:
            parts = [self.tag(f"if {self.expression(2)}"), body()]
            if self.random.random() < 0.4:
                parts += [self.tag(f"elif {self.expression(1)}"), body()]
            if self.random.random() < 0.5:
                parts += [self.tag("else"), body()]
            return "".join(parts) + self.tag("endif")
        if kind in (5, 6):
            source = self.pick(["l", "names", "people", "messages", "d", "d.items()", "s", "mixed", "range(3)", "d|items",
                                "nested", "empty_list", "missing", "names|sort", "l[1:]", self.expression(1)])
            target = "k, v" if "items" in source else "v"
            condition = f" if {self.expression(1)}" if self.random.random() < 0.25 else ""
            loop = self.pick(["", "{{ loop.index }}", "{{ loop.last }}", "{{ loop.length }}", "{{ loop.revindex0 }}",
                              "{{ loop.first }}{{ loop.nextitem }}", "{{ loop.previtem }}", "{{ loop.cycle('p', 'q') }}",
                              "{% if loop.index > 2 %}{% break %}{% endif %}", "{% if loop.index0 == 1 %}{% continue %}{% endif %}",
                              "{{ loop.changed(v) }}", "{{ loop.depth }}"])
            other = self.tag("else") + body() if self.random.random() < 0.3 else ""
            return (self.tag(f"for {target} in {source}{condition}") + loop + "{{ v }}" + body() + other + self.tag("endfor"))
        if kind == 7:
            return (self.tag("set ns = namespace(n=0, t='')") + self.tag("for i in l") + "{% set ns.n = ns.n + i %}"
                    + self.tag(f"set ns.t = ns.t ~ ({self.expression(1)})") + self.tag("endfor") + "{{ ns.n }}{{ ns.t }}")
        if kind == 8:
            return (self.tag(f"macro m(p, q={self.expression(1)})") + "[{{ p }}|{{ q }}]" + body() + self.tag("endmacro")
                    + "{{ m(" + self.pick(["1", "1, 2", "q=3", "", "p='x', q=s", "1, 2, 3", "r=1"]) + ") }}")
        if kind == 9:
            return self.tag(f"set w{self.pick(['', '|upper', '|trim|length'])}") + body() + self.tag("endset") + "{{ w }}"
        return self.pick([
            lambda: self.tag(f"filter {self.pick(['upper', 'trim', 'indent(2)', 'replace(1, 2)'])}") + body() + self.tag("endfilter"),
            lambda: self.tag(f"with v = {self.expression(1)}, y = 1") + "{{ v }}" + body() + self.tag("endwith"),
            lambda: self.tag("generation") + body() + self.tag("endgeneration"),
            lambda: self.tag("raw") + "{{ not }} " + self.tag("endraw"),
            lambda: "{% macro c(n) %}<{{ caller(n) }}>{% endmacro %}{% call(z) c(" + self.expression(1) + ") %}{{ z }}"
                    + body() + "{% endcall %}"])()

    def block(self, depth):
        return "".join(self.text() + self.statement(depth) for _ in range(self.random.randrange(1, 3))) + self.text()

    def template(self):
        return self.block(2) if self.random.random() < 0.5 else self.text() + self.output() + self.text()
