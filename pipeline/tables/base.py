"""The declarative base, and the column types that every area shares."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated

from sqlalchemy import BigInteger, DateTime, Enum, Identity, MetaData, Numeric, Text, func
from sqlalchemy.orm import DeclarativeBase, mapped_column

#: An exact amount of money; the scale holds any quantity x price x discount without rounding.
Money = Annotated[Decimal, mapped_column(Numeric(38, 15))]
#: A price of 1,000,000 units.
Price = Annotated[Decimal, mapped_column(Numeric(20, 6))]
#: A moment by the database's clock.
Moment = Annotated[datetime, mapped_column(DateTime(timezone=True))]
#: The moment at which the row was written.
Created = Annotated[datetime, mapped_column(DateTime(timezone=True), server_default=func.now())]
#: A row number that the database gives.
RowId = Annotated[int, mapped_column(BigInteger, Identity(always=False), primary_key=True)]


class Base(DeclarativeBase):
    """Strings are TEXT, integers are BIGINT, and every constraint has a name."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {str: Text(), int: BigInteger()}  # noqa: RUF012


def text_enum(kind: type[StrEnum], name: str) -> Enum:
    """A StrEnum as text with a CHECK, so that a new value is a cheap migration."""
    return Enum(
        kind,
        native_enum=False,
        create_constraint=True,
        name=name,
        length=32,
        values_callable=lambda members: [member.value for member in members],
    )
