"""Config files to agents: an `app.yaml` is read, checked, and made into what a Runner runs.

In the order in which a file goes through them:

- `files`, `yamltext`, `jsontext`: its text becomes values that know their lines (`source`)
- `environment`: `${NAME}` is replaced
- `schema`, `validation`: the values become an `AppConfig`, or `problems` that name file, line and remedy
- `references`: what names what, and that it makes a tree
- `load`: all of that
- `making`, `dotted`, `models`, `tools`, `mcp`, `services`, `agents`: what the names stand for is made
- `workflow`: `WorkflowBuilder`, which does both
- `editor`: the JSON schema that editors help with
"""
