"""The command that a message advises for a text in an old encoding converts this text when it is pasted."""

from __future__ import annotations

import shutil
import subprocess
import unicodedata
from pathlib import Path

import pytest

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.recognition.conversion import convert_command
from gpt_pretrain.system.recognition.old_encodings import likely_encodings
from gpt_pretrain.system.recognition.seven_bit_encodings import seven_bit_encoding
from gpt_pretrain.texts import invalid_utf8
from gpt_pretrain.texts.invalid_utf8 import explain_invalid_utf8
from tests.helpers.text_inputs import in_corpus, in_training

TEXTS = {
    "cp1252": "Déjà vu à la fenêtre, c'était l'été où l'on s'aimait très fort.\n",
    "latin-1": "È importante però non scordare che si può già usare più di così: è lì, quaggiù.\n",
    "iso8859_3": "Eĥoŝanĝo ĉiuĵaŭde: ŝi ĵus ĝojis, ĉar ankaŭ la ĥoro aŭdis ŝin.\n",
    "iso8859_15": "Le cœur de ma sœur à l'été, et l'œuvre très légère, coûtent 5 €.\n",
    "cp037": "The quick brown fox jumps over the lazy dog, and 13 times again.\n",
    "cp500": "Ça va très bien, [garçon]! Déjà vu, à bientôt.\n",
    "cp273": "Größe, Übung, Äpfel: schöne Grüße aus München!\n",
    "cp1026": "Pijamalı hasta yağız şoföre çabucak güvendi.\n",
    "cp875": "Η γρήγορη καφετιά αλεπού πηδάει πάνω από το σκυλί.\n",
    "cp424": "שלום עולם, זה טקסט בעברית לבדיקה.\n",
    "mac_roman": "Größe, Übung, Äpfel: schöne Grüße aus München!\n",
    "cp850": "El niño comió piña. ¿Dónde está el camión?\n",
    "cp437": "Größe, Übung, Äpfel: schöne Grüße aus München!\n",
    "cp1250": "Árvíztűrő tükörfúrógép, és más őszinte szavak.\n",
    "iso8859_2": "Zażółć gęślą jaźń, proszę pana o książkę źle.\n",
    "cp852": "Příliš žluťoučký kůň úpěl ďábelské ódy.\n",
    "mac_latin2": "Zażółć gęślą jaźń, proszę pana o książkę źle.\n",
    "cp857": "Pijamalı hasta yağız şoföre çabucak güvendi.\n",
    "cp1258": "T\u00e2\u0301t ca\u0309 mo\u0323i ng\u01b0\u01a1\u0300i sinh ra \u0111\u00ea\u0300u t\u01b0\u0323 do va\u0300 bi\u0300nh \u0111\u0103\u0309ng.\n",
    "cp1254": "Pijamalı hasta yağız şoföre çabucak güvendi.\n",
    "cp1251": "Щастя — це коли тебе розуміють, їжа і її друзі.\n",
    "koi8_r": "Все счастливые семьи похожи друг на друга.\n",
    "cp866": "Все счастливые семьи похожи друг на друга.\n",
    "mac_cyrillic": "Все счастливые семьи похожи друг на друга, каждая несчастлива.\n",
    "iso8859_7": "Η γρήγορη καφετιά αλεπού πηδάει πάνω από το σκυλί.\n",
    "cp1253": "Η γρήγορη καφετιά αλεπού, η Άννα και ο Άγγελος.\n",
    "cp737": "Η γρήγορη καφετιά αλεπού, η Άννα και ο Άγγελος.\n",
    "mac_greek": "Η γρήγορη καφετιά αλεπού πηδάει πάνω από το σκυλί.\n",
    "cp862": "שלום עולם, זה טקסט בעברית לבדיקה.\n",
    "iso8859_8": "שלום עולם, זה טקסט בעברית לבדיקה.\n",
    "iso8859_6": "مرحبا بالعالم، هذا نص عربي للاختبار.\n",
    "cp1255": "שלום עולם, זה טקסט בעברית לבדיקה.\n",
    "cp1256": "مرحبا بالعالم، هذا نص عربي للاختبار.\n",
    "cp874": "สวัสดีชาวโลก นี่คือข้อความภาษาไทย\n",
    "cp932": "これは日本語の文章です。漢字とカタカナも。\n",
    "euc_jp": "これは日本語の文章です。吾輩は猫である。名前はまだ無い。\n",
    "iso2022_jp": "これは日本語の文章です。吾輩は猫である。\n",
    "gb18030": "今天天气很好, 我们去公园散步。话说天下大势, 分久必合。\n",
    "big5": "話說天下大勢, 分久必合, 合久必分。\n",
    "big5hkscs": "呢個係香港嘅粵語文章，佢哋鍾意飲茶同埋食點心。\n",
    "euc_kr": "안녕하세요 세계, 이것은 한국어 문장입니다.\n",
    "utf_7": "Größe, Übung, 1 + 1: schöne Grüße, 今天 in München!\n",
    "hz": "今天天气很好, 我们去公园~散步。~\n",
    "iso2022_kr": "안녕하세요 세계, 이것은 한국어 문장입니다.\n",
}  # fmt: skip
# Bytes that are nearly UTF-8, and the text that the command makes of them.
DAMAGED = {
    "half a pair": (b"abc \xed\xa0\x80 def\n", "abc \ufffd def\n"),
    "pairs of surrogates": (b"x \xed\xa0\xbd\xed\xb8\x80 y\n", "x 😀 y\n"),
    "surrogates in the last line": ("Grüße\n".encode() + b"x \xed\xa0\xbd\xed\xb8\x80" * 5, "Grüße\n" + "x 😀" * 5),
    "NULs of Java in the last line": (b"first\n" + b"one\xc0\x80two", "first\nonetwo"),
    "one byte": ("Déjà vu.\n".encode() * 60 + b"\xff and more", "Déjà vu.\n" * 60 + " and more"),
    "NULs of Java": (b"one\xc0\x80two\n", "onetwo\n"),
    "cut": ("Grüße 今天\n".encode() * 20 + b"abc \xe4\xbd", "Grüße 今天\n" * 20 + "abc "),
    "cut early": (b"abc \xe4\xbd", "abc "),
}

pytestmark = pytest.mark.skipif(shutil.which("iconv") is None, reason="The program iconv is not installed.")


def converted(path: Path, message: str) -> str:
    """Return what the command in a message writes."""
    start = min(message.find(name) for name in ("iconv -", "python -c") if name in message)
    command = message[start:].partition(" > new.txt")[0] + " > new.txt"
    subprocess.run(command, shell=True, cwd=path.parent, check=False)
    return (path.parent / "new.txt").read_bytes().decode()


def check_conversion(path: Path, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    for read in (in_training, lambda name: in_corpus(name, path.parent / "out")):
        with pytest.raises(UserError) as caught:
            read(Path(path.name))
        # The program iconv joins letters and their accents, which some encodings keep apart.
        assert unicodedata.normalize("NFC", converted(path, str(caught.value))) == unicodedata.normalize("NFC", expected)


@pytest.mark.parametrize("encoding", TEXTS)
@pytest.mark.parametrize("repeated", [1, 700])
def test_the_advised_command_converts_the_text(
    tmp_path: Path, encoding: str, repeated: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = TEXTS[encoding] * repeated
    path = tmp_path / ("-it's old.txt" if repeated == 1 else "old.txt")
    path.write_bytes(text.encode(encoding))
    check_conversion(path, text, monkeypatch)


@pytest.mark.parametrize(("encoding", "rare"), [("iso8859_7", "Άλλα και όμως "), ("iso8859_15", "sa sœur et son cœur ")])
def test_letters_far_from_the_beginning_tell_an_encoding_too(
    tmp_path: Path, encoding: str, rare: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = {
        "iso8859_7": "η γρήγορη καφετιά αλεπού πηδάει πάνω από το σκυλί.\n",
        "iso8859_15": "la fenêtre de l'été très chaud.\n",
    }
    text = usual[encoding] * 400 + rare + usual[encoding] * 200
    (tmp_path / "old.txt").write_bytes(text.encode(encoding))
    check_conversion(tmp_path / "old.txt", text, monkeypatch)


@pytest.mark.parametrize("text", ["Die Übung ist für Schüler.", "Tür für Über"])
def test_words_with_latin_letters_are_in_latin_script(text: str) -> None:
    assert next(likely_encodings(text.encode("cp1252"))) == "cp1252"


# Texts in which letters beyond ASCII are few, or stand between words of another script.
SPARSE = {
    "quotes": (["cp1252", "mac_roman"], "“Who’s there?” she said. “It’s only me,” he answered, “the cat – or the ‘dog’.”\n"),
    "apostrophes": (
        ["cp1252", "mac_roman"],
        "I don’t know, and they don't either. It’s late, isn’t it? The dogs’ food is old.\n",
    ),
    "dashes": (["cp1252", "mac_roman"], "It rained – as always – and the river rose.\n"),
    "pounds": (["cp1252", "cp850"], "It cost £5 or £6, and it was 30° in the shade.\n"),
    "euros": (["cp1252"], "The room costs 40 € a night, a meal 12 €, and a beer 3 €.\n"),
    "units": (["cp1252", "mac_roman", "cp850"], "At 20°C the wire is 5 µm thick, and at 30°C it is 6 µm.\n"),
    "dutch": (
        ["cp1252", "iso8859_15", "mac_roman", "cp850"],
        "Daniël ging naar het café, at één pannenkoek en zag knieën, ruïnes en zeeën; de coëfficiënt is geïnd.\n",
    ),
    "albanian": (
        ["cp1252", "mac_roman", "cp850"],
        "Një mëngjes të ftohtë ai doli nga shtëpia dhe shkoi në kullotë. Çfarë është kjo?\n",
    ),
    "icelandic": (
        ["cp1252", "iso8859_15"],
        "Það var kalt um morguninn þegar Þóra gekk niður að höfninni. Hún svaraði ekki, því að ísinn lá við bryggjuna.\n",
    ),
    "estonian": (
        ["cp1252", "cp1257", "cp775"],
        "Külmal hommikul läks Jüri üle õue. Õhtul tuli tüdruk kööki, ja päike oli jää kohal.\n",
    ),
    "afrikaans": (["cp1252", "mac_roman"], "Sy sê hulle hê môre reën, en die koei wêreld is geïnteresseerd in vroeër oë.\n"),
    "names in english": (
        ["cp1252", "mac_roman"],
        "Noël and Zoë are naïve, and Zoë’s coöperation with Noël was reëxamined. It’s late.\n",
    ),
    "romanian": (
        ["cp1250", "iso8859_2", "cp852"],
        "Într-o dimineaţă rece, Ştefan ieşi din casă şi porni spre râu. Băiatul nu ştia că viaţa e grea.\n",
    ),
    "croatian": (
        ["cp1250", "iso8859_2", "cp852"],
        "Jednog hladnog jutra Željko je izašao iz kuće i krenuo prema rijeci. Šumar je nešto rekao, čovjek je šutio.\n",
    ),
    "bullets": (["cp1252", "mac_roman"], "A list:\n• bread\n• milk\nAnd so on…\n"),
    "spaces": (["cp1252", "mac_roman", "cp850"], "It is 5\u00a0km to the old\u00a0mill, and 10\u00a0km back.\n"),
    "spaces after sentences": (
        ["cp1252", "mac_roman", "cp850"],
        "One sentence.\u00a0 Another one.\u00a0 And a last\u00a0one.\n\u00a0\n",
    ),
    "fractions": (["cp1252"], "Add ½ cup of milk and ¼ cup of sugar. Bake for 1½ hours.\n"),
    "cents": (["cp1252"], "It cost 99¢ then, and ¥500 in Japan.\n"),
    "dots": (["cp1252"], "· one\n· two\n· three\n"),
    "soft hyphens": (["cp1252"], "The in\u00adter\u00adest of this text is its hyphen\u00adation.\n"),
    "acute accents": (["cp1252"], "It´s late, and they don´t go.\n"),
    "narrow katakana": (["cp932"], "ﾃﾞｰﾀを読み込む。ﾌｧｲﾙを開く。\n"),
    "towns": (["cp932"], "東京 名古屋 京都 神戸 横浜 福岡 仙台 広島\n"),
    "comments": (["gb18030"], "int main() { // 初始化变量\n  int a = 0; // 计数器\n  return a; // 返回结果\n}\n"),
    "guillemets": (["cp1252"], "Las opciones «uno» y «dos» están aquí, también el año y la opción «tres».\n"),
    "german quotes": (["cp1252", "mac_roman"], "„Guten Tag“, sagte er, „wie geht’s?“ – ‚Gut‘, sagte sie.\n"),
    "french capitals": (["cp1252", "mac_roman", "cp850"], "L'ÉTÉ DERNIER, NOUS ÉTIONS À LA MER. LA FORÊT ÉTAIT BELLE.\n"),
    "italian capitals": (["cp1252"], "PERCHÉ LA CITTÀ È COSÌ BELLA? LA LIBERTÀ È GIÀ LÀ.\n"),
    "tildes": (["cp1252"], "As opções não são lidas. A seção padrão têm três versões.\n"),
    "russian": (["cp1251", "koi8_r"], "The link http://example.org/news/today is called Новости дня, then Дорогие друзья.\n"),
    "hebrew": (["cp1255"], "The link http://example.org/news/today is in Hebrew: שלום עולם, זה טקסט בעברית לבדיקה.\n"),
    "greek": (["cp1253"], "Η ΕΦΗΜΕΡΙΔΑ : ΝΕΑ\nhttp://example.org/news/today\nΤρία νέα στην αγορά\n"),
}


@pytest.mark.parametrize("name", SPARSE)
def test_punctuation_and_words_of_another_script_tell_the_encoding(name: str) -> None:
    encodings, text = SPARSE[name]
    for encoding in encodings:
        data = (text * 20).encode(encoding)
        assert unicodedata.normalize("NFC", data.decode(next(likely_encodings(data)))) == text * 20


@pytest.mark.parametrize("name", ["spaces", "spaces after sentences"])
def test_english_with_spaces_that_do_not_break_is_no_arabic(name: str) -> None:
    """In CP864, such a text reads the same."""
    text = SPARSE[name][1]
    for repeated in (1, 3, 20):
        assert next(likely_encodings((text * repeated).encode("cp1252"))) == "cp1252"


@pytest.mark.parametrize("repeated", [1, 100])
def test_the_shapes_of_arabic_letters_in_dos_become_letters(
    tmp_path: Path, repeated: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "مرحبا بالعالم، هذا نص عربي للاختبار، ولا شيء غير ذلك.\n" * repeated
    shapes = {bytes([code]).decode("cp864", errors="ignore"): bytes([code]) for code in range(255, 127, -1)}
    codes = {unicodedata.normalize("NFKC", shape): code for shape, code in shapes.items()}
    (tmp_path / "old.txt").write_bytes(b"".join(codes.get(letter, letter.encode("ascii", "ignore")) for letter in text))
    check_conversion(tmp_path / "old.txt", text, monkeypatch)


NO_CODES = [
    *("x = a +b+ c; i++; C++ +1 800", "q=hello+world+projects", "one +positive sign", "diff\n+int x;\n+foo\n+++ b/file.c\n"),
    *('(format t "~{~a~^, ~}" list)', "~{ab~} ~{~A~%~}", "~Foo() {} ~{{x}~}", "+++++ +-+-+-"),
]


@pytest.mark.parametrize("text", NO_CODES)
def test_signs_that_are_no_codes_are_plain_text(text: str) -> None:
    assert seven_bit_encoding(text.encode()) is None
    assert seven_bit_encoding(text.encode() * 100) is None


@pytest.mark.parametrize("name", DAMAGED)
def test_the_advised_command_mends_damaged_utf8(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content, expected = DAMAGED[name]
    (tmp_path / "a.txt").write_bytes(content)
    check_conversion(tmp_path / "a.txt", expected, monkeypatch)


@pytest.mark.parametrize("encoding", ["mac_greek", "mac_turkish", "hz"])
def test_what_iconv_does_not_know_is_converted_by_python(tmp_path: Path, encoding: str) -> None:
    text = "今天" if encoding == "hz" else "çö\r\n"
    (tmp_path / "-a.txt").write_bytes(text.encode(encoding))
    assert converted(tmp_path / "-a.txt", convert_command("-a.txt", encoding)) == text


@pytest.mark.parametrize("content", [b"\xa0\n\xa0 \n", b"\x85\n", b"\x81"])
def test_a_text_of_white_space_and_signs_is_explained_too(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    for path in (str(tmp_path / "a.txt"), "a.zip/a.txt"):
        with pytest.raises(UnicodeDecodeError) as caught:
            content.decode()
        assert "in which a part of it reads" in explain_invalid_utf8(content, caught.value, 0, path)[1]


def test_the_advice_shows_how_the_text_would_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(("one line of ASCII\n" * 9 + "Москва, столица России.\n").encode("cp1251"))
    with pytest.raises(
        UserError, match=r'in which a part of it reads ".*Москва, столица России."\. If that is right, convert it: iconv'
    ):
        in_training(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("encoding", "other", "text", "shown"),
    [
        ("cp1250", "cp1252", "Nikt tam nie wraca. Idę.", "Idę."),
        ("iso8859_2", "cp1252", "-H Permite de funciile shell şi aşa", "şi aşa"),
        (
            "cp1252",
            "cp1250",
            "öll vera af sömu og það er ekki nóg, en ætti að vera sama sem allt annað",
            "það er ekki nóg, en ætti",
        ),
        ("gb18030", "cp932", "l, nologin 4 " + "今天天气很好" * 30, "今天天气很好"),
    ],
)
def test_the_part_shown_has_the_letters_that_another_encoding_reads_differently(
    encoding: str, other: str, text: str, shown: str
) -> None:
    assert shown in invalid_utf8._telling_part(text, encoding, other)


@pytest.mark.parametrize("text", ["Am Abend trank er einen Tee im Caf\u00e9", "Caf\u00e9", "Das war ein Spa\u00df"])
def test_a_text_that_ends_in_an_accented_letter_is_not_cut(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_bytes(text.encode("cp1252"))
    check_conversion(tmp_path / "a.txt", text, monkeypatch)


def test_no_command_is_advised_that_would_make_garbage(tmp_path: Path) -> None:
    mixed = "Déjà vu ".encode() + "déjà vu\n".encode("latin-1") * 5
    french = "la fenêtre de l'été très chaud, sa sœur\n"
    for content, message in (
        ((french.encode() + french.encode("iso8859_15") * 8) * 40, "Some of it is UTF-8, and some looks like ISO8859-15"),
        ("Grüße aus München\n".encode() + "Grüße aus München\n".encode("cp1252"), "and some looks like CP1252"),
        (mixed, "Some of it is UTF-8, and some looks like CP1252"),
        (b"a\xff\xfe\x81\n" * 9, "another encoding"),
    ):
        (tmp_path / "a.txt").write_bytes(content)
        with pytest.raises(UserError, match=message) as caught:
            in_training(tmp_path / "a.txt")
        assert "iconv" not in str(caught.value)
