"""Run a command of Django's on the Django recipe: ``python django_commanded.py FOLDER DATABASE COMMAND [APP]``.

``test shop`` runs the recipe's own tests with Django's runner, in the test database that its migrations make; the
runner's summary goes to standard error, and the exit code is its own.
"""

from __future__ import annotations

import json
import sys

import django
from django.conf import settings


def main(folder: str, database: str, *command: str) -> None:
    sys.path.insert(0, folder)
    settings.configure(
        DATABASES={"default": json.loads(database)},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        INSTALLED_APPS=["shop"],
        ROOT_URLCONF="shop.views",
        USE_TZ=True,
    )
    django.setup()
    from django.core.management import call_command

    call_command("makemigrations", "shop", verbosity=0)  # the order's table is the application's own business
    call_command(*command, interactive=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
