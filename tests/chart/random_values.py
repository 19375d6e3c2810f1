"""Values of the chart drawn at random: every property of values.schema.json somewhere within its bounds, texts of every shape
that its patterns allow, and null, which takes a default away.

    python3 tests/chart/random_values.py SEED    prints those of a seed, as test_chart_random.py draws them"""

import json
import math
import random
import re
import sys

import chart

try:
    from re import _constants as codes, _parser as parser
except ImportError:  # Python 3.10
    import sre_constants as codes
    import sre_parse as parser

# Texts that YAML, templates, shells or the kubelet take for something else.
TEXTS = ["", "a", "true", "null", "~", "1e3", "0x10", "010", "1:30", "2026-01-01", "yes", "-", "- a", "a: b", "# a", " a", "a ", "'", '"',
         "\\", "{{ .Values }}", "{%- a %}", "[a, b]", "{a: b}", "*a", "&a", "!a", "%s %d", "$", "$$", "$(PATH)", "$(A) $$(A)", "${A}", "`a`",
         "é 字 🙂", "a\nb", "\n", "a\n\n", "|", ">", "@", "a,b=c"]
SOURCES = ("existingClaim", "hostPath", "image", "csi")
# Of items and free maps; no bound is reached by more.
MOST_ENTRIES = 3


def schema():
    return json.loads((chart.CHART / "values.schema.json").read_text())


class Drawer:
    """Draws one value set. The same for the same seed and schema."""

    def __init__(self, seed, whole=None):
        self.random = random.Random(seed)
        self.whole = whole or schema()
        # Sparse ones show what a value does by itself, dense ones what values do to each other.
        self.density = self.random.choice((0.03, 0.1, 0.1, 0.25, 0.6))

    def values(self):
        values = self.object(self.whole, in_defaults=True)
        model = values.setdefault("model", {})
        if not isinstance(model, dict):
            model = values["model"] = {}
        # One source is always there, and a second one seldom.
        properties = self.whole["properties"]["model"]["properties"]
        for name in SOURCES:
            if self.random.random() < 0.97:
                if name == "image" and model.get(name):
                    model[name].pop("reference", None)  # when to pull can be said without
                else:
                    model.pop(name, None)
        source = self.random.choice(SOURCES)
        if source == "existingClaim" or source == "hostPath":
            drawn = ""
            while not drawn:
                drawn = self.draw(properties[source])
        else:
            required = {"image": "reference", "csi": "driver"}[source]
            drawn = self.object(properties[source], in_defaults=True)
            while not drawn.get(required):
                drawn[required] = self.draw(properties[source]["properties"][required])
        model[source] = drawn
        return values

    def resolve(self, part):
        while "$ref" in part:
            part = self.whole["definitions"][part["$ref"].rpartition("/")[2]]
        if "allOf" in part:
            rest = {key: value for key, value in part.items() if key != "allOf"}
            [of_all] = part["allOf"]
            part = {**self.resolve(of_all), **rest}
        return part

    def draw(self, part, in_defaults=False):
        part = self.resolve(part)
        if "enum" in part:
            return self.random.choice(part["enum"])
        if "const" in part:
            return part["const"]
        if "anyOf" in part:
            return self.draw(self.random.choice(part["anyOf"]), in_defaults)
        kind = part.get("type", "string")
        if isinstance(kind, list):
            kind = self.random.choice(kind)
        return {"null": lambda: None, "boolean": lambda: self.random.random() < 0.5, "integer": lambda: self.integer(part),
                "number": lambda: self.number(part), "string": lambda: self.string(part), "array": lambda: self.array(part),
                "object": lambda: self.object(part, in_defaults)}[kind]()

    def object(self, part, in_defaults=False):
        """`in_defaults`: what is left out has a default in values.yaml."""
        part, result = self.resolve(part), {}
        for name, one in part.get("properties", {}).items():
            must = name in part.get("required", []) and not in_defaults
            inner = self.resolve(one)
            if name == "global":
                continue
            if in_defaults and "properties" in inner:
                if self.random.random() < self.density / 20:
                    result[name] = None
                elif drawn := self.object(inner, in_defaults=True):
                    result[name] = drawn
            elif must or self.random.random() < self.density:
                result[name] = None if in_defaults and self.random.random() < 0.08 else self.draw(one)
        if isinstance(part.get("additionalProperties"), dict):
            for _ in range(self.random.randint(0, MOST_ENTRIES)):
                result[self.string(self.resolve(part.get("propertyNames", {})))] = self.draw(part["additionalProperties"])
        return result

    def array(self, part):
        most = min(part.get("maxItems", MOST_ENTRIES), MOST_ENTRIES)
        drawn = [self.draw(part["items"]) for _ in range(self.random.randint(part.get("minItems", 0), most))]
        if part.get("uniqueItems"):
            drawn = [one for index, one in enumerate(drawn) if one not in drawn[:index]]
        return drawn

    def integer(self, part):
        least = part.get("minimum", -2**31)
        most = part.get("maximum", least + 1000)
        span = most - least
        # The ends, and between them as many small numbers as large ones.
        return self.random.choice((least, most, min(most, least + 1), least + int(math.expm1(self.random.uniform(0, math.log1p(span))))))

    def number(self, part):
        least, most = part["minimum"], part["maximum"]
        drawn = self.random.choice((least, most, 1, self.random.uniform(least, min(most, least + 10)), self.random.uniform(least, most)))
        return float(f"{min(max(drawn, least), most):.4g}")

    def string(self, part):
        least, most = part.get("minLength", 0), part.get("maxLength", 60)
        for _ in range(1000):
            drawn = self.match(part["pattern"]) if "pattern" in part else self.random.choice(TEXTS)
            if self.random.random() < 0.1 and "pattern" in part:  # long ones
                drawn = max((self.match(part["pattern"], 70) for _ in range(4)), key=lambda text: (len(text) <= most, len(text)))
            if least <= len(drawn) <= most and drawn != part.get("not", {}).get("const"):
                return drawn
        raise AssertionError(f"nothing fits {part}")

    def match(self, pattern, longest=4):
        """A text that the pattern takes, with no more repetitions than `longest` where it sets no end of them."""
        text = "".join(self.of_nodes(parser.parse(pattern), longest))
        assert re.search(pattern, text), (pattern, text)
        return text

    def of_nodes(self, nodes, longest):
        for code, argument in nodes:
            if code is codes.LITERAL:
                yield chr(argument)
            elif code is codes.ANY or code is codes.NOT_LITERAL:
                yield self.random.choice([one for one in "az09 .$'" if code is codes.ANY or ord(one) != argument])
            elif code is codes.IN:
                yield self.of_set(argument)
            elif code is codes.MAX_REPEAT:
                least, most, inner = argument
                times = self.random.randint(least, max(least, min(most, least + longest)))
                for _ in range(times):
                    yield from self.of_nodes(inner, longest)
            elif code is codes.SUBPATTERN:
                yield from self.of_nodes(argument[-1], longest)
            elif code is codes.BRANCH:
                yield from self.of_nodes(self.random.choice(argument[1]), longest)
            else:
                assert code is codes.AT, code

    def of_set(self, members):
        negated = members[0][0] is codes.NEGATE
        if negated:
            taken = [one for one in "az09AZ .,:;-_/$(){}[]'\"\\#%&*!|>@`~é字" if not self.is_in(one, members[1:])]
            return self.random.choice(taken)
        code, argument = self.random.choice(members)
        return chr(argument if code is codes.LITERAL else self.random.randint(*argument))

    @staticmethod
    def is_in(character, members):
        for code, argument in members:
            if code is codes.CATEGORY:
                assert argument is codes.CATEGORY_SPACE
                if character.isspace():
                    return True
            elif argument == ord(character) if code is codes.LITERAL else argument[0] <= ord(character) <= argument[1]:
                return True
        return False


def paths(values, above=""):
    """Dotted names of everything that is given."""
    for name, value in values.items():
        yield above + name
        if isinstance(value, dict):
            yield from paths(value, f"{above}{name}.")


def without(values, path):
    """A copy that leaves the value at a dotted path to its default."""
    head, _, rest = path.partition(".")
    result = dict(values)
    if rest and isinstance(result[head], dict):
        result[head] = without(result[head], rest)
    else:
        del result[head]
    return result


if __name__ == "__main__":
    print(json.dumps(Drawer(int(sys.argv[1])).values(), indent=2, ensure_ascii=False))
