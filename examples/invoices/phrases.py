"""The words that invoice sentences are made of.

A phrasing holds the four slots {vendor}, {number}, {amount} and {date}, each once. A vendor may end in a full stop
("Ltd."), so no phrasing may put one right after it: the reader could not know whose it is.
"""

from __future__ import annotations

OPENINGS = (
    "Hi team, ",
    "Hello, ",
    "FYI: ",
    "Dear all, ",
    "Good morning, ",
    "Fwd: ",
    "Reminder: ",
    "For your records: ",
    "Please book: ",
    "New mail: ",
    "Scan 1 of 2: ",
    "Re your order: ",
)

PHRASINGS = (
    "{vendor} billed us {amount} on {date}, invoice {number}.",
    "Invoice {number} from {vendor}, dated {date}, comes to {amount}.",
    "We received invoice no. {number} from {vendor} over {amount}, issued {date}.",
    "On {date} {vendor} issued invoice {number} for {amount}.",
    "Please pay {amount} to {vendor} for invoice {number} of {date}.",
    "{vendor} | Invoice {number} | {date} | Total {amount}",
    "INVOICE {number}, {vendor}, date: {date}, total due: {amount}.",
    "Vendor: {vendor}; invoice: {number}; date: {date}; amount: {amount}",
    "The total of bill {number} by {vendor} is {amount} (date of issue {date}).",
    "Amount due: {amount}. Supplier: {vendor}, ref. {number}, {date}.",
    "{date}: {vendor} sent us bill #{number}, {amount} in total.",
    "Our supplier {vendor} charges {amount}, see invoice {number} from {date}.",
    "Attached is invoice #{number} for {amount}, written on {date} by {vendor} as agreed.",
    "{amount} payable to {vendor}, invoice number {number}, invoice date {date}.",
    "According to document {number} dated {date} we owe {vendor} a sum of {amount}.",
    "Bill from {vendor}: no. {number}, {date}, grand total {amount}.",
    "{vendor} wants {amount} for the delivery of {date} (invoice {number}).",
    "Invoice date {date}, invoice no. {number}, issued by {vendor}, total {amount}.",
    "Total: {amount} / No: {number} / From: {vendor} / Date: {date}",
    "We were invoiced {amount} by {vendor} under {number} on {date}.",
    "Invoice {number} ({date}) of {vendor} is open with {amount}.",
    "Payment of {amount} is requested by {vendor}, invoice {number}, {date}.",
    "Subject: {vendor} invoice {number} - {amount} - {date}",
    "The invoice of {date} from {vendor} has number {number} and asks for {amount}.",
    "Number {number}, {amount}, {date}, {vendor} (services).",
    "{vendor} has sent invoice {number}. It is dated {date} and totals {amount}.",
    "Kindly settle {number}: {amount}, owed to {vendor} since {date}.",
    "For work done, {vendor} invoices {amount} with {number} as of {date}.",
)

# Every figure in a remark is noise: none of them may be taken for the invoice's own number, amount or date.
REMARKS = (
    " Payable within {days} days.",
    " Net {days} days.",
    " Our order: PO {order}.",
    " Customer no. {order}.",
    " This includes {percent}% VAT.",
    " A discount of {percent}% was granted.",
    " Late fees of {percent}% apply after {days} days.",
    " Contact us at extension {extension}.",
    " Cost centre {extension}.",
    " Thanks!",
    " Thank you for your business.",
    " Please confirm.",
    " Best regards, {given}",
    " Approved by {given}.",
)

GIVEN_NAMES = (
    "Anna", "Ben", "Chloe", "David", "Elif", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Kim", "Lena", "Marek", "Nora",
)  # fmt: skip

SURNAMES = (
    "Abbott", "Almeida", "Andersson", "Bauer", "Becker", "Bianchi", "Bjørk", "Brennan", "Castillo", "Chen", "Clarke",
    "Costa", "Dąbrowski", "Dubois", "Eriksen", "Ferrari", "Fischer", "Fournier", "García", "Grant", "Gupta",
    "Hartmann", "Hoffmann", "Hughes", "Ibrahim", "Ivanov", "Jansen", "Jensen", "Kaya", "Keller", "Kimura", "Kowalski",
    "Lambert", "Larsen", "Lehmann", "Lindqvist", "Lopez", "Maier", "Martin", "Meyer", "Moreau", "Müller", "Nakamura",
    "Nguyen", "Novak", "O'Brien", "Okafor", "Olsen", "Park", "Patel", "Pereira", "Quinn", "Reyes", "Rossi", "Sato",
    "Schmidt", "Silva", "Sørensen", "Tanaka", "Taylor", "Turner", "Vargas", "Visser", "Walker", "Weber", "Wójcik",
    "Yamada", "Young", "Zhang", "Zimmermann",
)  # fmt: skip

PLACES = (
    "Alpine", "Baltic", "Bergen", "Bristol", "Danube", "Delta", "Geneva", "Harbour", "Iberia", "Krakow", "Lisbon",
    "Lyon", "Nordic", "Oslo", "Pacific", "Porto", "Rhine", "Riverside", "Sierra", "Tampere", "Tyrol", "Utrecht",
    "Valley", "Vienna",
)  # fmt: skip

TRADES = (
    "Analytics", "Bakery", "Catering", "Cleaning", "Components", "Consulting", "Dairy", "Design", "Electric",
    "Energy", "Engineering", "Foods", "Freight", "Furniture", "Glass", "Hosting", "Instruments", "Labs", "Legal",
    "Lighting", "Logistics", "Machines", "Media", "Metals", "Motors", "Office Supply", "Optics", "Packaging", "Paper",
    "Partners", "Plumbing", "Print", "Roofing", "Security", "Software", "Solar", "Steel", "Studio", "Systems",
    "Telecom", "Textiles", "Tools", "Trading", "Travel", "Works",
)  # fmt: skip

LEGAL_FORMS = (
    "GmbH", "AG", "KG", "Ltd", "Ltd.", "LLC", "Inc.", "PLC", "S.A.", "S.r.l.", "B.V.", "AB", "Oy", "SE", "Sp. z o.o.",
    "& Co.",
)  # fmt: skip

# Coined names ("Velmora", "Trinax") make most vendors unique, so that a name can only be copied, never remembered.
SYLLABLE_HEADS = (
    "al", "an", "ar", "ba", "bel", "bri", "ca", "cor", "da", "del", "do", "el", "en", "fa", "fer", "ga", "gra", "hal",
    "he", "in", "jo", "ka", "kel", "kri", "la", "lu", "ma", "mer", "mi", "na", "nor", "o", "pa", "per", "pla", "qua",
    "ra", "ri", "sa", "sel", "sti", "ta", "ter", "tri", "ul", "va", "vel", "vi", "wes", "xe", "ya", "ze", "zor",
)  # fmt: skip

SYLLABLE_TAILS = (
    "ba", "bro", "ce", "cto", "da", "dex", "do", "fa", "gen", "go", "ka", "kon", "la", "lis", "lo", "ma", "mex", "mi",
    "mo", "na", "nax", "ne", "nix", "no", "nta", "pha", "po", "ra", "rex", "ria", "ro", "sa", "so", "sta", "ta",
    "tech", "tex", "tis", "to", "va", "via", "vo", "xa", "za", "zen", "zo",
)  # fmt: skip

MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip

# How each currency is written around a figure.
CURRENCIES: dict[str, tuple[str, ...]] = {
    "EUR": ("€{}", "€ {}", "{} €", "EUR {}", "{} EUR", "{} euros"),
    "USD": ("${}", "US${}", "$ {}", "USD {}", "{} USD", "{} US dollars"),
    "GBP": ("£{}", "£ {}", "GBP {}", "{} GBP", "{} pounds"),
    "CHF": ("CHF {}", "{} CHF", "{} Swiss francs"),
    "JPY": ("¥{}", "JPY {}", "{} JPY", "{} yen"),
    "SEK": ("{} kr", "SEK {}", "{} SEK", "{} kronor"),
    "PLN": ("{} zł", "PLN {}", "{} PLN", "{} zloty"),
}
