"""An OpenAPI document as a page for people, which loads nothing: no script, and no host but this one."""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64encode
from html import escape
from typing import Any

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
pre { background: #8882; padding: .75rem; overflow: auto; }
summary { cursor: pointer; padding: .25rem 0; }
td { padding: 0 1rem 0 0; vertical-align: top; }
"""
_POLICY = f"default-src 'none'; style-src 'sha256-{b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'"
CONTENT_SECURITY_POLICY = f"{_POLICY}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_REFERENCE = re.compile(r"#/components/schemas/([\w.-]+)")


def page(document: dict[str, Any]) -> str:
    about = {name: escape(text) for name, text in document["info"].items()}
    title = about["title"]
    operations = [
        _operation(method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = [
        f'<h3 id="{escape(name)}">{escape(name)}</h3>{_schema(schema)}'
        for name, schema in document.get("components", {}).get("schemas", {}).items()
    ]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<h1>{title} {about['version']}</h1><p>{about['description']}</p>"
        f'<p>For programs: <a href="openapi.json">openapi.json</a></p>'
        f"{''.join(operations)}<h2>Schemas</h2>{''.join(schemas)}</html>"
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    about = escape(operation.get("description") or operation.get("summary", ""))
    parts = [f"<details><summary><b>{method}</b> <code>{escape(path)}</code></summary><p>{about}</p>"]
    for parameter in operation.get("parameters", []):
        what = f"{parameter['in']}{', required' if parameter.get('required') else ''}"
        parts.append(f"<h3>{escape(parameter['name'])} ({what})</h3>{_schema(parameter['schema'])}")
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"<h3>Body, {escape(kind)}</h3>{_schema(content['schema'])}")
    rows = [
        f"<tr><td>{status}<td>{escape(answer['description'])}<td>{escape(', '.join(answer.get('content', {})))}"
        for status, answer in operation["responses"].items()
    ]
    return f"{''.join(parts)}<h3>Answers</h3><table>{''.join(rows)}</table></details>"


def _schema(schema: dict[str, Any]) -> str:
    text = escape(json.dumps(schema, indent=2, ensure_ascii=False))
    return f"<pre>{_REFERENCE.sub(_link, text)}</pre>"


def _link(found: re.Match[str]) -> str:
    return f'<a href="#{found[1]}">{found[1]}</a>'
