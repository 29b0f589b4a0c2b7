package vm

import (
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
)

var nameRE = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

var reservedNames = []string{"banger", "gateway", "host", "localhost"}

const nameRule = "a name is 1 to 63 of a-z, 0-9 and -, starts and ends with a letter or digit, and is not all digits"

// CheckName reports why name cannot be the name of a VM, nil where it can.
func CheckName(name string) error {
	switch {
	case !nameRE.MatchString(name):
		return api.Errorf(api.KindInvalid, "vm name %q is not valid", name).WithHint("%s", nameRule)
	case strings.Trim(name, "0123456789") == "":
		return api.Errorf(api.KindInvalid, "vm name %q is all digits", name).WithHint("%s", nameRule)
	case slices.Contains(reservedNames, name):
		return api.Errorf(api.KindInvalid, "vm name %q is reserved", name).
			WithHint("the names %s mean something else in a network of VMs; choose another", strings.Join(reservedNames, ", "))
	}
	return nil
}

var (
	nameFirst = strings.Fields("agile amber brave brisk bright calm clever cosmic crisp eager early fair fleet fresh gentle " +
		"glad golden happy hardy jolly keen kind lively lucky mellow merry mighty neat nimble noble plucky polite " +
		"proud quick quiet rapid ready sharp silent smart snappy solid sunny swift tidy warm witty zesty")
	nameSecond = strings.Fields("badger beaver bison bobcat condor coyote crane deer dingo eagle egret falcon ferret finch fox gecko " +
		"heron ibex ibis jackal jay kestrel kiwi lemur lion lynx marmot marten mole moose newt ocelot otter owl panda " +
		"puffin puma quail rabbit raven robin seal shrew stoat swan tapir toad viper vole walrus weasel wombat wren yak")
)

// generateName returns a name such as brave-otter; after a few tries that were taken, one with a number.
func generateName(try int) string {
	name := nameFirst[rand.IntN(len(nameFirst))] + "-" + nameSecond[rand.IntN(len(nameSecond))]
	if try > 2 {
		name += "-" + string(rune('a'+rand.IntN(26))) + string(rune('0'+rand.IntN(10))) + string(rune('a'+rand.IntN(26)))
	}
	return name
}
