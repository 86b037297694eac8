"""The known units by dimension and size, and the words that are never units."""

from __future__ import annotations

from fractions import Fraction

from trd_cli.graders.reading.vocabulary import words

# base: {size in base units: names}. Names are compared in lower case unless they are in `CASED`.
TABLE: dict[str, dict[str, str]] = {
    "metre": {
        "1": "meter metre metres meters mètre mètres metro metros метр метра метров м m 米 公尺 メートル 미터",
        "1000": "km kilometer kilometre kilometers kilometres kms kilómetro kilómetros kilometro kilometri км километр километра "
        "километров 千米 公里 キロメートル 킬로미터",
        "1/10": "dm decimeter decimetre дм 分米",
        "1/100": "cm centimeter centimetre centimeters centimetres cms centímetro centímetros zentimeter см сантиметр сантиметра "
        "сантиметров 厘米 公分 センチメートル 센티미터",
        "1/1000": "mm millimeter millimetre millimeters millimetres milímetro milímetros мм 毫米 ミリメートル 밀리미터",
        "1/1000000": "um micron microns micrometer micrometre micrometers micrometres",
        "1/1000000000": "nanometer nanometre nanometers nanometres",
        "254/10000": "inch inches in pulgadas pouces zoll",
        "3048/10000": "ft foot feet pies fuß",
        "9144/10000": "yd yds yard yards",
        "1609344/1000": "mi mile miles millas meilen",
        "9460730472580800": "ly lightyear lightyears",
    },
    "second": {
        "1": "s sec secs second seconds segundo segundos seconde secondes sekunde sekunden secondi секунда секунды секунд 秒 초",
        "60": "min mins minute minutes minuto minutos minuten minuti минута минуты минут мин 分钟 分鐘 分 분",
        "3600": "h hr hrs hour hours hora horas heure heures stunde stunden ore час часа часов ч 小时 时 小時 時間 시간",
        "86400": "day days día días dia dias jour jours tag tage tagen giorni день дня дней 天 日 일",
        "604800": "wk wks week weeks semana semanas semaine semaines woche wochen settimane неделя недели недель 周 星期 週間 주",
        "1/1000": "ms msec millisecond milliseconds 毫秒",
        "1/1000000": "microsecond microseconds",
        "1/1000000000": "ns nanosecond nanoseconds",
    },
    "month": {
        "1": "month months mes meses mois monat monate mesi месяц месяца месяцев 个月 ヶ月 か月 개월",
        "12": "yr yrs year years año años ano anos an ans année années jahr jahre jahren anni год года лет 年 岁 歳 년 살",
        "120": "decade decades",
        "1200": "century centuries",
    },
    "gram": {
        "1": "g gm gms gram grams gramme grammes gramo gramos gramm г грамм граммов грамма 克 グラム 그램",
        "1000": "kg kgs kilogram kilograms kilogramme kilo kilos kilogramo kilogramos kilogramm кг килограмм килограмма килограммов "
        "千克 公斤 キログラム 킬로그램",
        "1/1000": "mg milligram milligrams мг 毫克",
        "1000000": "t ton tons tonne tonnes tonelada toneladas тонна тонны тонн 吨 トン 톤",
        "45359237/100000": "lb lbs pound pounds",
        "28349523125/1000000000": "oz ounce ounces",
    },
    "litre": {
        "1": "l liter litre liters litres litro litros л литр литра литров 升 リットル 리터",
        "1/1000": "ml milliliter millilitre milliliters millilitres cc мл 毫升",
        "1/100": "cl centiliter centilitre",
        "3785411784/1000000000": "gal gallon gallons",
        "946352946/1000000000": "qt quart quarts",
        "473176473/1000000000": "pint pints",
        "2365882365/10000000000": "cup cups",
    },
    "hectare": {"1": "ha hectare hectares", "40468564224/100000000000": "acre acres"},
    "cent": {
        "100": "$ dollar dollars usd dólar dólares доллар доллара долларов 美元 ドル 달러",
        "1": "¢ cent cents",
        "10": "dime dimes",
        "5": "nickel nickels",
        "25": "quarter-dollar quarter-dollars",
    },
    "euro": {"1": "€ eur euro euros евро 欧元 ユーロ 유로"},
    "gbp": {"1": "£ gbp quid", "1/100": "penny-sterling pence"},
    "yen": {"1": "¥ yen jpy 円 日元"},
    "yuan": {"1": "yuan rmb cny 元 块 人民币", "1/10": "角"},
    "rupee": {"1": "₹ rs rs. inr rupee rupees", "1/100": "paise paisa"},
    "rouble": {"1": "₽ rub ruble rubles rouble roubles рубль рубля рублей руб", "1/100": "копейка копейки копеек"},
    "won": {"1": "₩ krw won 원"},
    "peso": {"1": "peso pesos"},
    "franc": {"1": "chf franc francs franken"},
    "celsius": {"1": "°c celsius degrees-celsius centigrade 摄氏度"},
    "fahrenheit": {"1": "°f fahrenheit degrees-fahrenheit 华氏度"},
    "kelvin": {"1": "k kelvin kelvins"},
    "angle": {
        "1": "rad rads radian radians radianes radiants 弧度",
        "1/180": "° deg degs degree degrees grad grados degrés градус градуса градусов 度 도",
    },
    "newton": {"1": "n newton newtons 牛 牛顿", "1000": "kn kilonewton kilonewtons"},
    "joule": {"1": "j joule joules 焦 焦耳", "1000": "kj kilojoule kilojoules", "4184/1000": "cal calorie calories"},
    "watt": {"1": "w watt watts 瓦 瓦特", "1000": "kw kilowatt kilowatts 千瓦", "1000000": "megawatt megawatts"},
    "volt": {"1": "v volt volts 伏 伏特", "1000": "kv kilovolt kilovolts"},
    "ampere": {"1": "a amp amps ampere amperes 安 安培", "1/1000": "ma milliamp milliamps"},
    "ohm": {"1": "ohm ohms 欧 欧姆", "1000": "kilohm kilohms"},
    "pascal": {
        "1": "pa pascal pascals 帕",
        "1000": "kpa kilopascal kilopascals",
        "101325": "atm atmosphere atmospheres",
    },
    "hertz": {"1": "hz hertz 赫兹", "1000": "khz kilohertz", "1000000": "mhz", "1000000000": "ghz"},
    "coulomb": {"1": "coulomb coulombs"},
    "farad": {"1": "farad farads"},
    "tesla": {"1": "tesla teslas"},
    "mole": {"1": "mol mols mole moles"},
    "byte": {"1": "byte bytes", "1000": "kb", "1000000": "mb", "1000000000": "gb"},
    "bit": {"1": "bit bits"},
    "person": {"1": "person persons people personas persona personen personnes человек человека 人 名 명"},
    "man": {"1": "man men"},
    "woman": {"1": "woman women"},
    "child": {"1": "child children niños kinder enfants"},
    "mouse": {"1": "mouse mice"},
    "foot-part": {"1": "tooth teeth"},
    "goose": {"1": "goose geese"},
    "ox": {"1": "ox oxen"},
    "fish": {"1": "fish fishes"},
    "sheep": {"1": "sheep"},
    "deer": {"1": "deer"},
    "vertex": {"1": "vertex vertices"},
    "die": {"1": "die dice"},
    "matrix": {"1": "matrix matrices"},
    "minute-mark": {"1": "minute-mark"},
    "second-mark": {"1": "second-mark"},
    "item": {"1": "个 個 只 隻 本 张 張 件 颗 条 種 种 개 штук штуки"},
    "times": {"1": "次 倍 回 번"},
    "ante": {"1": "am"},
    "post": {"1": "pm"},
    "before-christ": {"1": "bc bce"},
    "anno-domini": {"1": "ad ce"},
}
# Words that count without a particular unit.
GENERIC = frozenset(
    words(
        "unit units square-units unidades einheiten points point pts pt marks mark ways way "
        "integers integer digits digit times numbers solutions total altogether left remaining "
        "in-total in-all each 单位"
    )
)
# Units that capitals tell apart from other meanings of the same letters.
CASED = {
    "N": "newton", "J": "joule", "W": "watt", "V": "volt", "A": "ampere", "K": "kelvin", "C": "coulomb", "F": "farad",
    "T": "tesla", "L": "litre", "Ω": "ohm", "Pa": "pascal", "Hz": "hertz",
}  # fmt: skip
COMPOUND = {
    "mph": "mi/h", "kph": "km/h", "kmh": "km/h", "kmph": "km/h", "fps": "ft/s", "sqft": "ft^2", "sqm": "m^2",
    "mpg": "mi/gal", "rpm": "revolution/min", "平方米": "m^2", "平方厘米": "cm^2", "立方米": "m^3", "立方厘米": "cm^3",
    "kwh": "kw h", "mps": "m/s", "bpm": "beat/min", "平方千米": "km^2", "平方公里": "km^2", "км/ч": "km/h", "м/с": "m/s",
    "平方分米": "dm^2", "立方分米": "dm^3", "千米/时": "km/h", "千米每小时": "km/h", "米/秒": "m/s",
}  # fmt: skip
# Short names that are a unit right after a number rather than a product of two letters.
GLUED = frozenset(
    words(
        "cm mm km kg ft lb lbs oz hz khz mhz ghz kw kwh kj kpa mph kph kmh kmph hr hrs min mins "
        "sec secs yd yds inch mol gal gb mb fps rpm mpg usd eur gbp rs atm deg rad"
    )
)
# Words that change the meaning of their neighbours and are therefore never counted things.
NO_NOUNS = frozenset(
    words(
        "less plus minus times halves thirds fourths quarters fifths sixths sevenths eighths "
        "ninths tenths hundredths thousandths pairs dozens hundreds thousands millions billions "
        "trillions squares cubes perhaps always its this is was has as us yes does besides "
        "versus percents scores roots powers factors multiples"
    )
)
CHANGING = frozenset(
    words(
        "above about across after against ago almost along among and approximately around away "
        "back before behind below beneath beside between beyond both but cannot could double "
        "down during early either else even except exactly factorial few first five four fold "
        "for forever from further great greater gross half high if impossible indeed infinite "
        "infinity into large last late later least less like long low maximum max mean minimum "
        "min missing modulo mod more most much near nearly negative neither never nine none nor "
        "not nothing off once one only opposite other otherwise out outside over pair part past "
        "per perhaps plus positive previous prime quadruple quarter rather reciprocal remainder "
        "root roughly score second seven several short since single six small some square than "
        "that the then there third three thrice through till times too toward triple twice two "
        "undefined under unless unlike until unto upon versus very via when which while with "
        "within without wrong zero couple cube dozen eight fourth fifth sixth seventh eighth "
        "ninth tenth hundred thousand million billion trillion inverse squared cubed percent "
        "percentage pct complement estimate estimated mistake error guess false true correct "
        "incorrect sorry however"
    )
)
CHANGING_ENDS = ("ed", "ly", "fold", "ther", "teenth", "tieth", "illion", "illionth", "dredth", "sandth")
# Units that are products of others, in grams, metres and seconds.
DERIVED: dict[str, tuple[Fraction, dict[str, int]]] = {
    "newton": (Fraction(1000), {"gram": 1, "metre": 1, "second": -2}),
    "joule": (Fraction(1000), {"gram": 1, "metre": 2, "second": -2}),
    "watt": (Fraction(1000), {"gram": 1, "metre": 2, "second": -3}),
    "pascal": (Fraction(1000), {"gram": 1, "metre": -1, "second": -2}),
    "hertz": (Fraction(1), {"second": -1}),
}
