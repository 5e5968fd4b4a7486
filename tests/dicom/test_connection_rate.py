from dicom.connection_rate import ConnectionRate


def test_a_second_s_worth_may_come_at_once_and_then_as_many_as_the_rate() -> None:
    rate = ConnectionRate(10)
    assert [rate.allows("a", 100.0) for _ in range(12)] == [True] * 10 + [False] * 2
    assert rate.allows("b", 100.0)
    assert [rate.allows("a", 100.35) for _ in range(4)] == [True] * 3 + [False]


def test_an_address_that_keeps_trying_is_allowed_its_rate_all_the_same() -> None:
    rate = ConnectionRate(10)
    allowed = sum(rate.allows("a", 100.0 + n / 1000) for n in range(5000))
    assert 58 <= allowed <= 60


def test_silence_saves_up_no_more_than_a_second_s_worth() -> None:
    rate = ConnectionRate(5)
    assert rate.allows("a", 0.0)
    assert [rate.allows("a", 1000.0) for _ in range(6)] == [True] * 5 + [False]


def test_any_number_of_addresses_is_remembered_in_bounded_space() -> None:
    rate = ConnectionRate(1)
    for n in range(10_000):
        assert rate.allows(str(n), 0.0)
    assert not rate.allows("9999", 0.0)
    assert rate.allows("0", 0.0)  # forgotten long ago
    assert len(rate._buckets) <= 4096
