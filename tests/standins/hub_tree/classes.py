"""The classes of the data sets."""

# Classes of Stanford Cars per maker: 196 in all, so that the data are as unbalanced as the real ones.
_CLASSES_OF_MAKERS = """AM:1 Acura:6 Aston:4 Audi:14 BMW:13 Bentley:6 Bugatti:2 Buick:4 Cadillac:3 Chevrolet:22
    Chrysler:6 Daewoo:1 Dodge:15 Eagle:1 FIAT:2 Ferrari:4 Fisker:1 Ford:12 GMC:5 Geo:1 HUMMER:2 Honda:4 Hyundai:11
    Infiniti:2 Isuzu:1 Jaguar:1 Jeep:5 Lamborghini:4 Land:2 Lincoln:1 MINI:1 Maybach:1 Mazda:1 McLaren:1
    Mercedes-Benz:6 Mitsubishi:1 Nissan:4 Plymouth:1 Porsche:1 Ram:1 Rolls-Royce:3 Scion:1 Spyker:2 Suzuki:4
    Tesla:1 Toyota:4 Volkswagen:3 Volvo:3 smart:1"""
MAKERS = {maker: int(count) for maker, count in (pair.split(":") for pair in _CLASSES_OF_MAKERS.split())}
_BODIES = "Sedan SUV Coupe Convertible Hatchback Wagon Cab Van".split()

ACTIONS = """calling clapping cycling dancing drinking eating fighting hugging laughing listening_to_music running
    sitting sleeping texting using_laptop""".split()


def cars() -> list[tuple[str, str, str]]:
    """196 invented (maker, model, year)."""
    rows = []
    for m, (maker, count) in enumerate(MAKERS.items()):
        for k in range(count):
            model = "General Hummer SUV" if maker == "AM" else f"{chr(65 + m % 26)}{k + 1}00 {_BODIES[(m + k) % 8]}"
            rows.append((maker, model, str(2012 - (m * 7 + k * 3) % 22)))
    return rows
