"""JSON schemas of the kinds that JSONSchemaBench collects: calls of functions, events, configurations, records."""

import random
from typing import Any

Schema = dict[str, Any]

WORDS = "name title city country language status kind owner label note unit currency colour brand model path".split()
UNICODE = ["名前", "größe", "prénom", "страна", "país", "🌍", "étage", "ключ", "naïve key", "a.b/c", 'with "quotes"']
FORMATS = ["date", "date-time", "time", "email", "uuid", "ipv4", "ipv6", "hostname", "duration", "uri"]
PATTERNS = [
    r"^[A-Z]{2}-\d{4}$",
    r"^(red|green|blue)(-light)?$",
    r"^\+?[0-9]{6,12}$",
    r"^[a-z][a-z0-9_]{2,15}$",
    r"^v\d+\.\d+\.\d+$",
    r"^#[0-9a-f]{6}$",
    r"^[^\s@]{1,8}@[a-z]{2,6}\.(org|com)$",
    r"^[A-ZÀ-Þ][a-zß-ÿ]{1,10}$",
]
KINDS = ("call", "nested", "bounds", "enums", "patterns", "choices", "references", "formats", "unicode", "records")


def make_schemas(count: int = 200, seed: int = 16) -> list[tuple[str, Schema]]:
    """As many schemas, each with its kind; the same from the same seed."""
    makers = [Maker(random.Random(f"{seed} {i}")) for i in range(count)]
    return [(kind := KINDS[i % len(KINDS)], getattr(maker, kind)()) for i, maker in enumerate(makers)]


class Maker:
    """Makes schemas by a source of randomness."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance

    def names(self, least: int, most: int) -> list[str]:
        return self.chance.sample(WORDS, self.chance.randint(least, most))

    def object(self, properties: Schema, **more: Any) -> Schema:
        """An object, some of whose properties are optional, that often allows no others."""
        required = [name for name in properties if self.chance.random() < 0.8]
        found: Schema = {"type": "object", "properties": properties, "required": required}
        if self.chance.random() < 0.7:
            found["additionalProperties"] = False
        return found | more

    def text(self) -> Schema:
        return self.chance.choice([{"type": "string"}, {"type": "string", "minLength": 1, "maxLength": 40}])

    def number(self) -> Schema:
        low = self.chance.randint(-50, 50)
        return self.chance.choice(
            [
                {"type": "integer"},
                {"type": "number"},
                {"type": "integer", "minimum": low, "maximum": low + self.chance.randint(1, 5000)},
                {"type": "number", "exclusiveMinimum": 0, "maximum": self.chance.choice([1, 100, 1e6])},
                {"type": "integer", "minimum": 0, "multipleOf": self.chance.choice([2, 5, 10])},
            ]
        )

    def scalar(self) -> Schema:
        return self.chance.choice([self.text, self.number, lambda: {"type": "boolean"}, self.enum, self.nullable])()

    def enum(self) -> Schema:
        values: list[Any] = self.names(2, 5)
        return {"enum": self.chance.choice([values, [*values, None], [1, 2, 3, 5, 8], [True, "maybe"]])}

    def nullable(self) -> Schema:
        return {"type": [self.chance.choice(["string", "integer"]), "null"]}

    def call(self) -> Schema:
        arguments = self.object({name: self.scalar() for name in self.names(1, 4)})
        return {
            "type": "object",
            "properties": {"name": {"const": f"get_{self.chance.choice(WORDS)}"}, "arguments": arguments},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }

    def nested(self, depth: int = 3) -> Schema:
        properties = {name: self.scalar() for name in self.names(1, 3)}
        if depth:
            properties[f"inner_{depth}"] = self.nested(depth - 1)
        return self.object(properties)

    def bounds(self) -> Schema:
        def array() -> Schema:
            least = self.chance.randint(0, 3)
            return {
                "type": "array",
                "items": self.scalar(),
                "minItems": least,
                "maxItems": least + self.chance.randint(0, 4),
            }

        pair = {"type": "array", "prefixItems": [self.number(), self.text()], "items": False, "minItems": 2}
        return self.object({name: self.chance.choice([array(), array(), pair]) for name in self.names(1, 3)})

    def enums(self) -> Schema:
        properties = {name: self.enum() for name in self.names(2, 5)}
        return self.object({"version": {"const": self.chance.choice(["1.0", 2, True, None, ["a", 1]])}} | properties)

    def patterns(self) -> Schema:
        properties = {name: {"type": "string", "pattern": self.chance.choice(PATTERNS)} for name in self.names(1, 4)}
        found = self.object(properties)
        if self.chance.random() < 0.3:
            found["patternProperties"] = {"^x-[a-z]{1,5}$": {"type": "integer"}}
            found["additionalProperties"] = False
        return found

    def choices(self) -> Schema:
        shapes = [
            {
                "type": "object",
                "properties": {"kind": {"const": name}, "value": self.scalar()},
                "required": ["kind", "value"],
                "additionalProperties": False,
            }
            for name in self.names(2, 3)
        ]
        word = self.chance.choice(["anyOf", "anyOf", "oneOf"])
        mixed = {"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 12}, {"type": "null"}]}
        return self.object({"shape": {word: shapes}, "size": mixed})

    def references(self) -> Schema:
        leaf = self.object({name: self.scalar() for name in self.names(1, 2)})
        tree = {
            "type": "object",
            "properties": {
                "value": self.number(),
                "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2},
            },
            "required": ["value"],
            "additionalProperties": False,
        }
        leaves = {"type": "array", "items": {"$ref": "#/$defs/leaf"}, "maxItems": 3}
        found = self.object({"first": {"$ref": "#/$defs/leaf"}, "others": leaves, "tree": {"$ref": "#/$defs/tree"}})
        return found | {"$defs": {"leaf": leaf, "tree": tree}}

    def formats(self) -> Schema:
        names = self.names(1, 4)
        return self.object({name: {"type": "string", "format": self.chance.choice(FORMATS)} for name in names})

    def unicode(self) -> Schema:
        names = self.chance.sample(UNICODE, self.chance.randint(2, 4))
        properties = {name: self.chance.choice([self.scalar(), {"enum": ["été", "冬", "весна"]}]) for name in names}
        return self.object(properties)

    def records(self) -> Schema:
        row = self.object({name: self.scalar() for name in self.names(2, 4)})
        row.pop("additionalProperties", None)  # what the other half requires would be forbidden
        base = {"type": "object", "properties": {"id": {"type": "integer", "minimum": 1}}, "required": ["id"]}
        table = {"type": "array", "items": {"allOf": [base, row]}, "minItems": 1, "maxItems": 3}
        by_name = {"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 3}
        return self.object({"rows": table, "totals": by_name})
