"""Tables of everyday values: what rooms, dishes, languages and time zones there are."""

from __future__ import annotations

MONTHS = "January February March April May June July August September October November December".split()
WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
LANGUAGES = (
    ("French", "fr"), ("German", "de"), ("Spanish", "es"), ("Italian", "it"), ("Portuguese", "pt"), ("Dutch", "nl"), ("Polish", "pl"), ("Swedish", "sv"),
    ("Japanese", "ja"), ("Korean", "ko"), ("Chinese", "zh"), ("Arabic", "ar"), ("Hindi", "hi"), ("Turkish", "tr"), ("Greek", "el"), ("Czech", "cs"),
    ("Danish", "da"), ("Finnish", "fi"), ("Russian", "ru"), ("English", "en"), ("Ukrainian", "uk"), ("Hungarian", "hu"),
)  # fmt: skip
CURRENCIES = (
    ("dollars", "USD"), ("euros", "EUR"), ("pounds", "GBP"), ("yen", "JPY"), ("francs", "CHF"), ("US dollars", "USD"), ("rupees", "INR"),
    ("yuan", "CNY"), ("kronor", "SEK"), ("Canadian dollars", "CAD"), ("Australian dollars", "AUD"), ("pesos", "MXN"), ("zloty", "PLN"),
)  # fmt: skip
CODES = (
    "USD",
    "EUR",
    "GBP",
    "JPY",
    "CHF",
    "INR",
    "CNY",
    "SEK",
    "CAD",
    "AUD",
    "MXN",
    "PLN",
    "NOK",
    "DKK",
    "BRL",
    "ZAR",
    "KRW",
)
UNITS = (
    "miles km kilometers meters feet inches cm yards pounds kg kilograms ounces grams stones liters gallons cups pints milliliters celsius fahrenheit "
    "kelvin hours minutes seconds days acres hectares knots mph"
).split()
EXTENSIONS = "txt pdf md csv json docx xlsx png jpg py js html zip log yaml".split()
KNOWN_FILES = "README.md README.md LICENSE Makefile Dockerfile pyproject.toml setup.py main.py app.py requirements.txt index.html notes.txt package.json config.yaml utils.py .gitignore todo.txt CHANGELOG.md".split()
FOLDERS = "docs src data reports backup images home notes tmp public config archive assets tests music photos projects invoices".split()
DOMAINS = "example.com mail.org corp.net acme.io test.dev shop.com post.net uni.edu".split()
FOODS = (
    "milk,bread,eggs,butter,apples,bananas,rice,pasta,cheese,coffee,tea,tomatoes,olive oil,chicken,toilet paper,batteries,dog food,shampoo,oat milk,"
    "paper towels,headphones,a phone charger,running shoes,dish soap,onions,cat litter,light bulbs,orange juice,yogurt,sugar"
).split(",")
COUNTRIES = (
    "France,Germany,Spain,Italy,Portugal,Norway,Sweden,Finland,Denmark,Poland,Austria,Greece,Turkey,Egypt,Kenya,Nigeria,Ghana,Morocco,South Africa,India,Nepal,China,Japan,Vietnam,Thailand,"
    "Indonesia,Australia,New Zealand,Canada,Mexico,Brazil,Argentina,Chile,Peru,Colombia,Cuba,Iceland,Ireland,Scotland,Ukraine,Hungary,Croatia,Estonia"
).split(",")
DISHES = (
    "lasagna,pancakes,chicken curry,tomato soup,apple pie,ramen,paella,risotto,tacos,banana bread,pad thai,goulash,falafel,chili,beef stew,caesar salad,pumpkin soup,"
    "brownies,omelette,pizza dough,sushi,dumplings,ratatouille,hummus,waffles,fried rice,cheesecake"
).split(",")
SERVICES = "nginx,postgres,redis,web,api,worker,billing,auth,search,gateway,frontend,backend,checkout,mailer,scheduler,kafka,payments,login,cron".split(
    ","
)
TABLES = "users,orders,customers,products,invoices,payments,sessions,employees,events,logs,accounts,tickets,items,reviews".split(
    ","
)
TICKERS = "AAPL MSFT TSLA AMZN GOOG NVDA META NFLX IBM INTC".split()
SPORTS = "football,basketball,tennis,hockey,baseball,cricket,rugby,volleyball,handball,golf,cycling,running,swimming,yoga,rowing,boxing,hiking".split(
    ","
)
GENRES = "jazz,rock,pop,classical,blues,techno,folk,hip hop,reggae,metal,country,soul,ambient,lo-fi,funk,disco,salsa,opera".split(
    ","
)
CUISINES = "italian,sushi,thai,mexican,indian,chinese,vegan,greek,korean,burgers,pizza,ramen,tapas,vietnamese,turkish,seafood".split(
    ","
)
ROOMS = "kitchen,living room,bedroom,bathroom,office,garage,hallway,kids room,guest room,basement,attic,balcony,dining room,study,nursery,garden,patio,porch".split(
    ","
)
DEVICES = "light,lamp,fan,heater,tv,speaker,lights,coffee machine,air conditioner,humidifier,blinds,radiator,plug,ceiling fan,dishwasher,oven,vacuum,projector".split(
    ","
)
SUBJECT_TEXTS = (
    "I will be late,the meeting is moved to Friday,dinner is ready,please call me back,I am on my way,see you tomorrow,the report is done,happy birthday,can we talk later,"
    "the build is broken,we are out of milk,I can't make it today,the package arrived,let's meet at noon,I left the keys inside,good luck with the exam,the server is down,"
    "thanks for the help,running ten minutes behind,don't forget the tickets,the door is open,lunch is at one,we won the deal,I finished the draft,the train is delayed,"
    "call the dentist,buy milk,pick up the kids,water the plants,pay the rent,take out the trash,renew my passport,feed the cat,submit the tax form,book the hotel,walk the dog,"
    "charge the car,fix the sink,wash the car,return the library books,call grandma,send the invoice,clean the kitchen,order new filters,update the slides,review the contract"
).split(",")
PHRASES = (
    "good morning,how are you,where is the station,thank you very much,I would like a coffee,see you later,the weather is nice,how much does it cost,I am hungry,"
    "where is the bathroom,my name is Anna,good night,what time is it,I love you,happy new year,have a nice day,can you help me,I am lost,two beers please,the food was great,hello,"
    "goodbye,see you soon,I don't understand,welcome home,the cat is black"
).split(",")


MARKS = "TODO TODO TODO FIXME FIXME HACK XXX NOTE BUG DEPRECATED WARNING TBD OPTIMIZE print password assert raise lambda async await return localhost debug import test main config error deprecated api_key".split()
FILE_LANGUAGES = (
    ("Python", "py"), ("Python", "py"), ("python", "py"), ("Python", "py"), ("JavaScript", "js"), ("TypeScript", "ts"), ("Rust", "rs"), ("Go", "go"), ("Java", "java"),
    ("C", "c"), ("C++", "cpp"), ("Markdown", "md"), ("JSON", "json"), ("YAML", "yaml"), ("HTML", "html"), ("CSS", "css"), ("Ruby", "rb"), ("text", "txt"), ("shell", "sh"),
    ("SQL", "sql"), ("CSV", "csv"), ("TOML", "toml"), (".py", "py"), (".md", "md"), (".js", "js"), (".txt", "txt"), ("py", "py"), ("md", "md"), ("js", "js"), ("json", "json"),
)  # fmt: skip
MORE_FILE_LANGUAGES = (
    ("C#", "cs"), ("PHP", "php"), ("Kotlin", "kt"), ("Swift", "swift"), ("Scala", "scala"), ("Lua", "lua"), ("Perl", "pl"), ("Haskell", "hs"), ("Dart", "dart"), ("R", "r"),
    ("XML", "xml"), ("INI", "ini"), ("log", "log"), ("bash", "sh"), ("JS", "js"), ("TS", "ts"), ("golang", "go"), ("plain text", "txt"), ("Vue", "vue"), ("LaTeX", "tex"),
)  # fmt: skip
"""For training only, beside `FILE_LANGUAGES`: the held-out requests draw from that one alone."""
MORE_EXTENSIONS = "ts rs go java c cpp rb css sh sql toml ini cfg xml tex php lock svg gz".split()
BARE_FILES = "LICENSE Makefile Dockerfile README CHANGELOG NOTICE AUTHORS Procfile Gemfile Jenkinsfile .env .gitignore VERSION COPYING TODO INSTALL".split()
"""Files whose names have no extension, or nothing else: for training only."""
ZONES = tuple(
    (place, zone)
    for zone, places in (
        ("Europe/Paris", "Paris,France,Lyon"), ("Europe/London", "London,England,the UK"), ("Europe/Berlin", "Berlin,Germany,Munich,Hamburg"), ("Europe/Madrid", "Madrid,Spain,Barcelona"),
        ("Europe/Rome", "Rome,Italy,Milan"), ("Europe/Vienna", "Vienna,Austria"), ("Europe/Zurich", "Zurich,Switzerland,Geneva"), ("Europe/Oslo", "Oslo,Norway"),
        ("Europe/Stockholm", "Stockholm,Sweden"), ("Europe/Helsinki", "Helsinki,Finland"), ("Europe/Copenhagen", "Copenhagen,Denmark"), ("Europe/Dublin", "Dublin,Ireland"),
        ("Europe/Lisbon", "Lisbon,Portugal"), ("Europe/Athens", "Athens,Greece"), ("Europe/Warsaw", "Warsaw,Poland"), ("Europe/Prague", "Prague"), ("Europe/Budapest", "Budapest,Hungary"),
        ("Europe/Brussels", "Brussels,Belgium"), ("Europe/Amsterdam", "Amsterdam,the Netherlands"), ("Europe/Moscow", "Moscow"), ("Europe/Kyiv", "Kyiv"), ("Europe/Istanbul", "Istanbul"),
        ("Asia/Tokyo", "Tokyo,Japan,Osaka,Tokyo"), ("Asia/Seoul", "Seoul,Korea"), ("Asia/Shanghai", "Shanghai,Beijing,China"), ("Asia/Hong_Kong", "Hong Kong"), ("Asia/Singapore", "Singapore"),
        ("Asia/Bangkok", "Bangkok,Thailand"), ("Asia/Jakarta", "Jakarta"), ("Asia/Manila", "Manila"), ("Asia/Kolkata", "India,Mumbai,Delhi,Kolkata"), ("Asia/Dubai", "Dubai"),
        ("Asia/Karachi", "Karachi"), ("Asia/Tehran", "Tehran"), ("Asia/Taipei", "Taipei"), ("Africa/Cairo", "Cairo,Egypt"), ("Africa/Nairobi", "Nairobi,Kenya"), ("Africa/Lagos", "Lagos,Nigeria"),
        ("Africa/Johannesburg", "Johannesburg"), ("Australia/Sydney", "Sydney"), ("Australia/Melbourne", "Melbourne"), ("Australia/Perth", "Perth"), ("Pacific/Auckland", "Auckland,New Zealand"),
        ("America/New_York", "New York,Boston,Miami,New York"), ("America/Chicago", "Chicago,Texas"), ("America/Denver", "Denver"), ("America/Los_Angeles", "Los Angeles,San Francisco,Seattle,California"),
        ("America/Toronto", "Toronto"), ("America/Vancouver", "Vancouver"), ("America/Mexico_City", "Mexico City,Mexico"), ("America/Sao_Paulo", "Sao Paulo"),
        ("America/Buenos_Aires", "Buenos Aires"), ("America/Lima", "Lima"), ("America/Bogota", "Bogota"), ("UTC", "UTC,UTC,UTC"), ("Europe/Paris", "Europe/Paris"), ("Asia/Tokyo", "Asia/Tokyo"),
    )
    for place in places.split(",")
)  # fmt: skip
