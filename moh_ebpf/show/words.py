"""Numbers and times as words."""


def whole_time(seconds: float) -> str:
    """42s, 3m05s, 1h02m, 2d03h."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d{hour:02}h"
    if hours:
        return f"{hours}h{minute:02}m"
    return f"{minutes}m{second:02}s" if minutes else f"{second}s"


def fine_time(seconds: float) -> str:
    """0.02s as long as hundredths matter."""
    return f"{seconds:.2f}s" if seconds < 10 else whole_time(seconds)


def rate_text(rate: float) -> str:
    """A decimal only where the rate is small."""
    return f"{rate:.0f}" if rate == 0 or rate >= 9.95 else f"{rate:.1f}"


def short(number: float) -> str:
    """Three digits and what they count: 999, 1.50k, 12.3M, 123G."""
    units = ["", "k", "M", "G", "T"]
    while number >= 999.5 and len(units) > 1:
        number /= 1000
        del units[0]
    unit = units[0]
    places = 0 if not unit or number >= 99.95 else 1 if number >= 9.995 else 2
    return f"{number:.{places}f}{unit}"


def packet_count(number: int) -> str:
    """As they are while one can still read them."""
    return str(number) if number < 100_000 else short(number)


def byte_count(number: int) -> str:
    """999 B, 1.50 kB, 12.3 MB."""
    text = short(number)
    digits = text.rstrip("kMGT")
    return f"{digits} {text[len(digits) :]}B"


def percent(share: float) -> str:
    return "-" if share < 0 else f"{share:.1%}"


def milliseconds(seconds: float) -> str:
    return "-" if seconds < 0 else f"{seconds * 1e3:.1f}ms"
