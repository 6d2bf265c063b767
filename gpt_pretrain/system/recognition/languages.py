"""Letters beyond ASCII by language, the most frequent ones first. They show the encoding of a text."""

from __future__ import annotations

KANA = "".join(map(chr, range(0x3041, 0x30FF)))

# Alphabets: all letters beyond ASCII that occur in a language. English has loanwords and names. Written Vietnamese is cut into
# letters and accents, as its 8-bit encoding does.
ALPHABETS: dict[str, str] = {
    "English": "éèñöïüçáêëàóíäôâåøãæ",
    "French": "éèàêçôâîûùïëœüñ",
    "German": "üäößéàèêç",
    "Spanish": "óíáéñúü",
    "Portuguese": "ãçáéíóêõúâàôü",
    "Italian": "èàòùìéîï",
    "Dutch": "ëéïöüèóáêçâä",
    "Swedish": "äåöéüà",
    "Danish": "åøæéöäüó",
    "Norwegian": "åøæéòóêèôäöü",
    "Finnish": "äöåéšž",
    "Icelandic": "íáðúóþéöæý",
    "Faroese": "íáðóúøæý",
    "Albanian": "ëç",
    "Afrikaans": "êëéôèïîûóáúö",
    "Catalan": "àóèéíòçúïü",
    "Galician": "óáíéñúüï",
    "Irish": "áíéóú",
    "Welsh": "ôâŵêŷîáïûéöëàãä",
    "Polish": "łęążśćóńźé",
    "Czech": "íáěéřžýščůúňóťďöü",
    "Slovak": "áíčéýžúšľťôóňäďŕĺěřöü",
    "Hungarian": "áéöóőüíúűä",
    "Romanian": "ăîâşţșțéáö",
    "Slovenian": "čšžćđéü",
    "Croatian": "čšžćđéö",
    "Turkish": "ıüşçğöâîûé",
    "Estonian": "äõüöšžéå",
    "Latvian": "āīēšūņļžčģķōé",
    "Lithuanian": "ėšųžąčįūęéöüä",
    "Maltese": "ħżġċàèìòù",
    "Esperanto": "ĉŝŭĝĵĥé",
    "Vietnamese": "\u0323ê\u0309\u0301ôđư\u0300âơáàăóùí\u0303ãúéìòèõýũ",
    "Russian": "оеаинтсрвлкмдпуяыьгзбчйхжшюцщэфъё",
    "Ukrainian": "оаинвітеурксмдлпязбьгчхйжцюшїєщфґ",
    "Belarusian": "анеіоркыдтлпьсгувзйцмяўшбчхэжюфё",
    "Bulgarian": "аиоентрсвлкдпмзяъбучгцйжщхшьюф",
    "Serbian": "аоиенрстјувкдмлпзбшгцчжњхћфљђџ",
    "Macedonian": "аоеинртвсдкјлпумзбгшчцжќхљфњџѓѕ",
    "Greek": "αοιεστηνςρυκπμλίόάγέδήωθχύβφώξζψϊϋΐΰ",
    "Hebrew": "יוהלאתמרבשנםדחעפקכטסגזצןךףץ",
    "Arabic": "اليمنرتوبةدسهفعكقحأجشصخطضغذىثئإزءظآؤ",
    "Persian": "اينردهتمسوبکشلگزخپعفقجآحچ",
    "Thai": "านร่อก้งมเัีดตยลวิบสแะจคขชปผพหไท็ำใูุืธณโฟซถภญฐศ์",
}  # fmt: skip
# Frequent characters of languages whose encodings have characters of several bytes.
FREQUENT: dict[str, str] = {
    "Japanese": f"{KANA}日一人年大国本中出上生行見事時分前気言手者",
    "Chinese": "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子得着下自之年过发后作里天分家",
    "Traditional Chinese": "的一是不了在人有我他這個們中來上大為和國地到以說時要就出會可也你對生能而子得著下自之年"
    "過發後作裡天分家係嘅佢唔呢咁哋喺啲嘢嚟",
    "Korean": "이다는에을가의를은로하고지한도서사기어자시인리나대과해으니라요그것안녕세계문장말일있수",
}
