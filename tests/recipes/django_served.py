"""Serve the Django recipe to its own test client: Django keeps one configuration a process, so this is a process.

``python django_served.py FOLDER DATABASE TOTAL...``: places an order of each total and prints each response's status.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import django
from django.conf import settings


def main(folder: str, database: str, totals: Sequence[str]) -> None:
    sys.path.insert(0, folder)
    settings.configure(
        ALLOWED_HOSTS=["testserver"],
        DATABASES={"default": json.loads(database)},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        INSTALLED_APPS=["shop"],
        ROOT_URLCONF="shop.views",
        USE_TZ=True,
    )
    django.setup()
    from django.db import connection
    from django.test import Client
    from shop.actions import publish
    from shop.models import Order

    from prefect_claim_dispatch import Draft

    with connection.schema_editor() as editor:
        editor.create_model(Order)
    client = Client()
    placed = [client.post("/orders", {"total": int(total)}, content_type="application/json") for total in totals]
    again = publish(Draft().type("order.expire").idempotency("order:1"))
    print(json.dumps({"statuses": [response.status_code for response in placed], "again": again}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
