"""The console at `/console`: pages that the gateway renders, so that any gateway can answer any page.

How a page is made:

- A file here has a `router = APIRouter()`, whose paths are those after `/console`; `app.py` lists it, and
  `navigation.py` has the entry that leads to it.
- A route is a plain `def` and takes `viewer: SignedIn`, or one that has a scope: `viewer: Annotated[Viewer,
  Depends(viewer_with(Scope.USAGE_READ))]`; `signing_in.py` has them. Whatever it reads is limited to
  `viewer.principal.tenant_id` and `.project_id`, but for operators' totals (`viewer.is_operator`). What is another's is
  `not_found("batch")`, like what is not there.
- It answers with `render(request, "usage.html", …)` (`rendering.py`). Templates extend `base.html`, fill the blocks
  `title`, `actions` and `content`, and use the macros of `parts.html`: `empty`, `badge`, `pager`, `progress`, `csrf`.
  Everything is escaped. Filters: `number`, `money(currency)`, `moment`, `duration`, `size` (`formatting.py`).
- A POST takes `form: SignedForm`, which has checked the CSRF token that the macro `csrf()` puts into the form, and
  where the form came from; it ends in `see_other("/console/…")`.
- A list is read by keys, never by counting or skipping rows, and shows an `empty` state.
- A page that is live has `{% block refresh %}3{% endblock %}` (seconds; empty: not live): `console.js` fetches the same
  address again and puts new content into every element that has an `id` and `data-live`.
- No inline script, style or handler: the content security policy refuses them. A chart is an element with
  `data-chart="…JSON of ApexCharts options…"` (`{{ options | tojson | forceescape }}`), and its table beside it; what
  has it extends `charts.html`.
- Tables have a `<caption class="visually-hidden">` and `scope="col"`; every input has a label.
"""

from __future__ import annotations

from pipeline.console.app import create_console

__all__ = ["create_console"]
