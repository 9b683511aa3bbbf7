"""The embedded clips: `python -m speechkit.demo.recipes.clips`. Sentences and voices that no model was trained on."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import soundfile

from speechkit.demo.recipes.espeak import EspeakVoice, synthesize

__all__ = ["main"]

# a text and the voice that says it; the variants are `corpus.HELD_OUT_VARIANTS`
SPOKEN: dict[str, list[tuple[str, EspeakVoice]]] = {
    "en": [
        ("please bring the patient in room fourteen before nine thirty", EspeakVoice("en-us", "Alicia", 150, 55, 50)),
        ("good morning how are you today", EspeakVoice("en-us", "Michael", 145, 45, 50)),
        ("the train to london leaves at quarter past seven", EspeakVoice("en", "edward", 150, 50, 50)),
        ("i would like a cup of coffee and a piece of cake", EspeakVoice("en-us", "linda", 150, 50, 50)),
        ("the meeting with anna was moved from monday to wednesday", EspeakVoice("en-us", "steph", 145, 50, 50)),
        ("my phone number is five five two nine zero one four", EspeakVoice("en-us", "Michael", 140, 50, 40)),
        ("where is the post office and is it open today", EspeakVoice("en-gb-x-rp", "Alicia", 145, 50, 50)),
        ("the doctor ordered a blood test and an x ray", EspeakVoice("en-us", "edward", 145, 45, 50)),
        ("turn left at the bridge and then turn right", EspeakVoice("en-us", "steph", 150, 60, 60)),
        ("the library closes at half past six on saturday", EspeakVoice("en-us", "linda", 140, 45, 40)),
    ],
    "zh": [
        ("我朋友明天坐出租车去火车站", EspeakVoice("cmn", "Alicia", 140, 55, 50)),
        ("请给王老师两杯咖啡", EspeakVoice("cmn", "Michael", 135, 45, 50)),
        ("火车站在银行旁边", EspeakVoice("cmn", "edward", 140, 50, 50)),
        ("妈妈昨天晚上买了红色的衣服", EspeakVoice("cmn", "linda", 140, 50, 50)),
        ("会议星期五早上九点半开始", EspeakVoice("cmn", "steph", 135, 50, 50)),
        ("我们和朋友一起看电影", EspeakVoice("cmn", "Alicia", 135, 45, 60)),
    ],
    "ko": [
        ("저는 어제 도서관에서 책을 읽었어요", EspeakVoice("ko", "Alicia", 145, 55, 50)),
        ("내일 오전 아홉 시 반에 호텔에서 만나요", EspeakVoice("ko", "Michael", 140, 45, 50)),
        ("서울에서 부산까지 기차로 오십 분 걸려요", EspeakVoice("ko", "edward", 145, 50, 50)),
        ("어머니께서 지난주에 병원에 가셨어요", EspeakVoice("ko", "linda", 145, 50, 50)),
        ("사과 다섯 개 커피 두 잔 주세요", EspeakVoice("ko", "steph", 140, 50, 50)),
        ("오늘은 시월 십오 일 금요일이에요", EspeakVoice("ko", "Michael", 140, 50, 40)),
    ],
    "pt": [
        ("quero uma passagem de são paulo para lisboa amanhã", EspeakVoice("pt-br", "Alicia", 150, 55, 50)),
        ("a reunião começa às nove e meia na segunda", EspeakVoice("pt-br", "Michael", 145, 45, 50)),
        ("minha irmã gostaria de um copo de água", EspeakVoice("pt", "edward", 150, 50, 50)),
        ("meu telefone é dois cinco sete zero nove três um", EspeakVoice("pt-br", "linda", 140, 50, 40)),
        ("a farmácia fica perto da estação", EspeakVoice("pt-br", "steph", 145, 50, 50)),
        ("o médico precisa assinar o relatório hoje", EspeakVoice("pt", "Alicia", 145, 45, 50)),
    ],
    "pl": [
        ("pociąg do warszawy odjeżdża o wpół do ósmej", EspeakVoice("pl", "Alicia", 150, 55, 50)),
        ("poproszę bilet z krakowa do berlina na sobotę", EspeakVoice("pl", "Michael", 145, 45, 50)),
        ("moja siostra kupiła czerwoną torbę w piątek", EspeakVoice("pl", "edward", 150, 50, 50)),
        ("mój numer telefonu to pięć dwa dziewięć zero jeden cztery", EspeakVoice("pl", "linda", 140, 50, 40)),
        ("apteka jest niedaleko szpitala", EspeakVoice("pl", "steph", 145, 50, 50)),
        ("lekarz bada gardło pacjenta dzisiaj", EspeakVoice("pl", "Alicia", 145, 45, 50)),
    ],
    "cs": [
        ("vlak do prahy odjíždí v pět hodin odpoledne", EspeakVoice("cs", "Alicia", 150, 55, 50)),
        ("prosím jeden lístek z brna do vídně na sobotu", EspeakVoice("cs", "Michael", 145, 45, 50)),
        ("moje sestra koupila červenou tašku v pátek", EspeakVoice("cs", "edward", 150, 50, 50)),
        ("moje telefonní číslo je pět dva devět nula jedna čtyři", EspeakVoice("cs", "linda", 140, 50, 40)),
        ("lékárna je blízko nemocnice", EspeakVoice("cs", "steph", 145, 50, 50)),
        ("můj bratr musí podepsat smlouvu dnes večer", EspeakVoice("cs", "Alicia", 145, 45, 50)),
    ],
    "sk": [
        ("vlak do bratislavy odchádza o pol ôsmej ráno", EspeakVoice("sk", "Alicia", 150, 55, 50)),
        ("prosím jeden lístok z košíc do viedne na sobotu", EspeakVoice("sk", "Michael", 145, 45, 50)),
        ("moja sestra kúpila červenú tašku v piatok", EspeakVoice("sk", "edward", 150, 50, 50)),
        ("moje telefónne číslo je päť dva deväť nula jeden štyri", EspeakVoice("sk", "linda", 140, 50, 40)),
        ("lekáreň je neďaleko nemocnice", EspeakVoice("sk", "steph", 145, 50, 50)),
        ("môj brat musí podpísať dokument dnes večer", EspeakVoice("sk", "Alicia", 145, 45, 50)),
    ],
    "uk": [
        ("зустрінемося у п'ятницю о сьомій вечора біля церкви", EspeakVoice("uk", "Alicia", 145, 55, 50)),
        ("моя сестра живе у львові біля річки", EspeakVoice("uk", "Michael", 140, 45, 50)),
        ("дайте будь ласка хліб сир і каву", EspeakVoice("uk", "edward", 145, 50, 50)),
        ("мені потрібен квиток до праги на понеділок", EspeakVoice("uk", "linda", 145, 50, 50)),
        ("вчора петро купив новий годинник за двісті гривень", EspeakVoice("uk", "steph", 140, 50, 50)),
        ("у мого брата дуже болить горло і голова", EspeakVoice("uk", "edward", 140, 45, 40)),
    ],
}
HERE = Path(__file__).resolve().parents[1] / "clips"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], prog="python -m speechkit.demo.recipes.clips")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for manifest.tsv and one folder per language")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "manifest.tsv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE, lineterminator="\n")
        writer.writerow(["path", "language", "text", "voice", "seconds"])
        for language, spoken in SPOKEN.items():
            for number, (text, voice) in enumerate(spoken, 1):
                samples = synthesize(text, voice)
                samples *= 0.7 / (np.abs(samples).max() + 1e-9)
                name = f"{language}/{language}-{number:02d}.flac"
                (options.out / language).mkdir(exist_ok=True)
                soundfile.write(options.out / name, samples, 16000, subtype="PCM_16")
                writer.writerow([name, language, text, voice.name, f"{len(samples) / 16000:.2f}"])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
